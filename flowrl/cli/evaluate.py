"""Compare checkpoints with the weights before training: same prompts, same noise, 95 % intervals.

Examples:
  flowrl evaluate runs/digits_g2rpo
  flowrl evaluate runs/digits_g2rpo --checkpoint all --images-per-prompt 50 --seed 1
  flowrl evaluate runs/flux --prompts HPDv2/benchmark --limit 400 --rewards image/evaluation_rewards
  flowrl evaluate image/digits_g2rpo                       (the base alone)
  accelerate launch --num_processes 8 -m flowrl.cli.main evaluate runs/flux

Writes results.json, report.html, per-image scores and side-by-side grids into RUN/comparisons/, and prints the tables. What a stopped
evaluation has drawn is kept: the same command goes on from there, also with another number of processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from flowrl.cli.processes import Processes
    from flowrl.rl import Reward
    from flowrl.train import Evaluation
    from flowrl.train.comparison import Comparison, Subject
    from flowrl.train.trainer import RLTrainer

__all__ = ["add_arguments", "run"]

ALL = "all"
NAMES = 3  # checkpoints that a folder is named after; more are told by the first and the last


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("source", metavar="RUN|CONFIG", help="a folder that flowrl train wrote, or a config")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument(
        "--checkpoint", metavar="C", action="append", help="its folder, or the updates it was taken after, or all; may be repeated"
    )
    parser.add_argument("--prompts", metavar="FILE", help="another prompt file or folder: txt, jsonl, json, csv, tsv, parquet")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--rewards", metavar="FILE", help="a config of a reward, or of a list named rewards, in place of the run's")
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="pictures of each prompt (default: as the run's evaluation)")
    parser.add_argument("--seed", type=int, help="of the noise (default: as the run's evaluation)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/comparisons/<checkpoints>)")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier evaluation left in the folder")


def run(args: argparse.Namespace) -> int:
    """Evaluate the base and the checkpoints, write and print the comparison."""
    from flowrl.cli.console import load_trainer
    from flowrl.cli.processes import Processes
    from flowrl.train.comparison import Comparison
    from flowrl.train.record import in_training

    trainer, folder = load_trainer(args.source, args.overrides)
    subjects = _subjects(folder, args.checkpoint)
    comparison = Comparison(
        folder=args.out or _folder(folder, subjects),
        evaluation=_evaluation(trainer, args),
        subjects=subjects,
        trained=in_training(trainer.reward.weights),
    )
    processes = Processes()
    if processes.is_main:
        comparison.open(_settings(trainer, comparison), restart=args.restart)
    processes.wait()
    _draw(trainer, comparison, processes)
    processes.wait()
    if processes.is_main:
        _tell(comparison)
    return 0


def _subjects(folder: Path | None, given: list[str] | None) -> list[Subject]:
    """The base, and the checkpoints that were named: a run's newest if none was."""
    from flowrl.cli.weights import find_checkpoint, released
    from flowrl.train.checkpoint import CheckpointFolder
    from flowrl.train.comparison import BASE, Subject

    if given == [ALL] and folder:
        given = [str(path) for path in CheckpointFolder(root=folder / "checkpoints").all()]
    names: list[str | None] = [*given] if given else [None] if folder else []
    found = [find_checkpoint(folder or Path(), name) for name in names]
    paths = list({path.resolve(): path for path in found}.values())
    return [Subject(name=BASE), *(Subject(name=name, weights=released(path)) for name, path in zip(_names(paths), paths, strict=True))]


def _names(checkpoints: list[Path]) -> list[str]:
    """Their own, with their run's before it where two have the same."""
    from flowrl.errors import ConfigError

    short = [path.name for path in checkpoints]
    runs = [path.resolve().parent.parent.name for path in checkpoints]
    names = [name if short.count(name) == 1 else f"{run}_{name}" for name, run in zip(short, runs, strict=True)]
    if len(set(names)) < len(names):
        raise ConfigError(f"several checkpoints are called {max(names, key=names.count)}; rename their runs' folders")
    return names


def _folder(run_dir: Path | None, subjects: list[Subject]) -> Path:
    names = [subject.name for subject in subjects[1:]] or [subjects[0].name]
    name = "_".join(names) if len(names) <= NAMES else f"{names[0]}_to_{names[-1]}"
    return (run_dir or Path("runs/evaluations")) / "comparisons" / name


def _evaluation(trainer: RLTrainer, args: argparse.Namespace) -> Evaluation:
    """The run's evaluation with what the command line changes."""
    from dataclasses import replace

    from flowrl.errors import ConfigError

    if trainer.evaluation is None:
        raise ConfigError(f"the config of {args.source} has no evaluation; add one, with prompts, a sampler and rewards")
    given = {"prompts": args.prompts, "images_per_prompt": args.images_per_prompt, "seed": args.seed}
    given |= {"rewards": _rewards(args.rewards) if args.rewards else None}
    evaluation = replace(trainer.evaluation, **{name: value for name, value in given.items() if value is not None})
    return replace(evaluation, prompts=tuple(evaluation.texts[: args.limit])) if args.limit else evaluation


def _rewards(config: str) -> tuple[Reward, ...]:
    from flowrl.config import instantiate, load_config

    built = instantiate(load_config(config))
    return tuple(built["rewards"]) if isinstance(built, dict) and "rewards" in built else (built,)


def _settings(trainer: RLTrainer, comparison: Comparison) -> dict[str, Any]:
    """All that decides the numbers."""
    from flowrl.train.comparison import weights_digest
    from flowrl.train.describe import describe

    weights = {subject.name: weights_digest(subject.weights) if subject.weights else None for subject in comparison.subjects}
    return {"model": describe(trainer.model), "evaluation": describe(comparison.evaluation), "weights": weights}


def _draw(trainer: RLTrainer, comparison: Comparison, processes: Processes) -> None:
    """Draw this process's share of what is missing; the model is only loaded if anything is."""
    from tqdm import tqdm

    from flowrl.cli.weights import load_model
    from flowrl.rl import prepare_reward

    todo = {subject.name: processes.share(comparison.missing(subject)) for subject in comparison.subjects}
    processes.wait()  # nobody draws before all have looked
    if not any(todo.values()):
        return
    for reward in comparison.evaluation.rewards:
        prepare_reward(reward, comparison.evaluation.texts, processes.device)
    model = load_model(trainer, processes.device)
    model.prepare(list(dict.fromkeys(comparison.evaluation.texts)))
    blocks = comparison.evaluation.blocks()
    pictures = sum(len(blocks[number]) for numbers in todo.values() for number in numbers)
    with tqdm(total=pictures, unit="picture", disable=not processes.is_main) as bar:
        for subject in comparison.subjects:
            if subject.weights is not None and todo[subject.name]:
                model.load_weights(subject.weights)
            for drawn in comparison.draw(model, subject, todo[subject.name]):
                bar.update(drawn)


def _tell(comparison: Comparison) -> None:
    from flowrl.cli.console import outcome_table, say, show
    from flowrl.train.comparison import BASE, REPORT, RESULTS
    from flowrl.train.outcomes import warnings

    evaluation = comparison.evaluation
    facts = {"prompts": len(evaluation.texts), "images": evaluation.images, "seed": evaluation.seed}
    for name, rows in comparison.finish(facts).items():
        what = "the base alone" if name == BASE else f"{name} against the weights before training"
        show(outcome_table(rows, f"{what}, {evaluation.images} images"))
        for warning in warnings(rows):
            say(f"Reward hacking? {warning}")
    say(f"results {comparison.folder / RESULTS}")
    say(f"report  {comparison.folder / REPORT}")
