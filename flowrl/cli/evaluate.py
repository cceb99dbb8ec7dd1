"""Compare a checkpoint with the weights before training: same prompts, same noise, 95 % intervals.

Examples:
  flowrl evaluate runs/digits_g2rpo
  flowrl evaluate runs/digits_g2rpo --checkpoint 20 --images-per-prompt 50 --seed 1

Writes results.json, per-image scores and a grid of both into RUN/comparisons/, and prints the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from flowrl.train import Evaluation, EvaluationResult
    from flowrl.train.outcomes import Outcome
    from flowrl.train.trainer import RLTrainer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("run", metavar="RUN", help="a folder that flowrl train wrote")
    parser.add_argument("--checkpoint", metavar="C", help="its folder, or the updates it was taken after (default: the newest)")
    parser.add_argument("--prompts", metavar="FILE", help="another prompt file, one prompt a line")
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="pictures of each prompt (default: as the run's evaluation)")
    parser.add_argument("--seed", type=int, help="of the noise (default: as the run's evaluation)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/comparisons/<checkpoint>)")


def run(args: argparse.Namespace) -> int:
    """Evaluate both models, write and print the comparison."""
    from flowrl.cli.console import load_trainer, outcome_table, say, show
    from flowrl.cli.weights import find_checkpoint
    from flowrl.errors import ConfigError
    from flowrl.train.outcomes import compared, warnings

    trainer, folder = load_trainer(args.run)
    if folder is None:
        raise ConfigError(f"{args.run} is a config; flowrl evaluate compares a run's checkpoint, so give the run's folder")
    evaluation = _evaluation(trainer, args)
    checkpoint = find_checkpoint(folder, args.checkpoint)
    before, after = _evaluate(trainer, evaluation, checkpoint)
    rows = compared(before, after, list(trainer.reward.weights))
    out = args.out or folder / "comparisons" / checkpoint.name
    settings = {"checkpoint": str(checkpoint), "prompts": len(evaluation.texts), "images": evaluation.images, "seed": evaluation.seed}
    _write(out, before, after, rows, settings)
    show(outcome_table(rows, f"{checkpoint} against the weights before training, {evaluation.images} images"))
    for warning in warnings(rows):
        say(f"Reward hacking? {warning}")
    say(f"results {out / 'results.json'}")
    if before.images:
        say(f"grid    {out / 'before_after.png'}")
    return 0


def _evaluation(trainer: RLTrainer, args: argparse.Namespace) -> Evaluation:
    """The run's evaluation with what the command line changes."""
    from dataclasses import replace

    from flowrl.errors import ConfigError

    if trainer.evaluation is None:
        raise ConfigError(f"the config of {args.run} has no evaluation; add one, with prompts, a sampler and rewards")
    given = {"prompts": args.prompts, "images_per_prompt": args.images_per_prompt, "seed": args.seed}
    return replace(trainer.evaluation, **{name: value for name, value in given.items() if value is not None})


def _evaluate(trainer: RLTrainer, evaluation: Evaluation, checkpoint: Path) -> tuple[EvaluationResult, EvaluationResult]:
    from flowrl.cli.weights import load_checkpoint_weights, load_model

    model = load_model(trainer)
    before = evaluation.run(model)
    load_checkpoint_weights(model, checkpoint)
    return before, evaluation.run(model)


def _write(out: Path, before: EvaluationResult, after: EvaluationResult, rows: list[Outcome], settings: dict[str, Any]) -> None:
    from dataclasses import asdict

    from flowrl.train.grids import save_png

    before.save(out / "before")
    after.save(out / "after")
    if before.images:
        save_png(after.grid_against(before, "Before and after training: same prompts, same noise"), out / "before_after.png")
    content = {**settings, "interval": "95 %, paired t over images", "scores": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
