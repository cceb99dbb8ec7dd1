"""Draw pictures into one grid, with the base weights or a checkpoint's.

Examples:
  flowrl sample image/digits_g2rpo --prompt seven --prompt two --images 4 --out base.png
  flowrl sample runs/digits_g2rpo --checkpoint 20 --prompt seven --score --out tuned.png
  flowrl sample image/digits_g2rpo evaluation.sampler.grid.steps=50 --out finer.png

A run folder means its newest checkpoint, a config the base weights. Prompts that are left out are those of the evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from PIL import Image

    from flowrl.models import ImageModel
    from flowrl.train import Evaluation
    from flowrl.train.trainer import RLTrainer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("source", metavar="CONFIG|RUN", help="a config, or a folder that flowrl train wrote")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument("--checkpoint", metavar="C", help="a checkpoint's folder, or the updates it was taken after (of a RUN)")
    parser.add_argument("--prompt", action="append", default=[], help="what to draw; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt file, in any of the formats of flowrl evaluate; jsonl may hold facts")
    parser.add_argument("--images", type=int, default=1, help="pictures of each prompt (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--score", action="store_true", help="write the trained reward under each picture")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="where to write the PNG (default grid.png)")


def run(args: argparse.Namespace) -> int:
    """Draw, score if asked to, write the grid."""
    from flowrl.cli.console import load_trainer, say
    from flowrl.cli.weights import find_checkpoint, load_checkpoint_weights, load_model
    from flowrl.train.grids import save_png

    trainer, folder = load_trainer(args.source, args.overrides)
    evaluation = _evaluation(trainer, args.source)
    if args.images < 1:
        raise ValueError(f"--images must be at least 1, got {args.images}")
    prompts = _prompts(trainer, evaluation, args)
    scoring = _scoring(trainer, evaluation, prompts, args) if args.score else None
    checkpoint = find_checkpoint(folder or Path(), args.checkpoint) if folder or args.checkpoint else None
    model = load_model(trainer)
    model.prepare(list(dict.fromkeys(prompts)))
    if checkpoint is not None:
        load_checkpoint_weights(model, checkpoint)
    title = checkpoint.name if checkpoint else "base weights"
    grid = scoring.run(model).grid(title) if scoring else _plain(model, evaluation, prompts, args, title)
    say(str(save_png(grid, args.out)))
    return 0


def _evaluation(trainer: RLTrainer, source: str) -> Evaluation:
    from flowrl.errors import ConfigError

    if trainer.evaluation is None:
        raise ConfigError(f"{source} has no evaluation, whose sampler draws the pictures; add evaluation.sampler to it")
    return trainer.evaluation


def _prompts(trainer: RLTrainer, evaluation: Evaluation, args: argparse.Namespace) -> list[str]:
    """What to draw; a prompt that the run knows comes with its facts."""
    from flowrl.train.prompts import load_prompts

    known = {str(prompt): prompt for prompt in reversed([*evaluation.texts, *load_prompts(trainer.prompts)])}
    asked = [*(known.get(prompt, prompt) for prompt in args.prompt), *(load_prompts(args.prompts) if args.prompts else [])]
    return asked or list(evaluation.texts)


def _plain(model: ImageModel, evaluation: Evaluation, prompts: Sequence[str], args: argparse.Namespace, title: str) -> Image.Image:
    """The pictures alone; no reward is asked, nor are its weights needed."""
    from dataclasses import replace

    from flowrl.train.grids import picture_grid

    wanted = list(prompts) * args.images
    return picture_grid(replace(evaluation, seed=args.seed).draw(model, wanted), wanted, None, title=title)


def _scoring(trainer: RLTrainer, evaluation: Evaluation, prompts: Sequence[str], args: argparse.Namespace) -> Evaluation:
    """The run's evaluation of these prompts by the trained reward alone."""
    from dataclasses import replace

    from flowrl.rl import check_prompts, check_ready

    check_prompts(trainer.reward, prompts)
    check_ready(trainer.reward)
    return replace(
        evaluation,
        prompts=tuple(prompts),
        rewards=(trainer.reward,),
        images_per_prompt=args.images,
        seed=args.seed,
        keep=len(prompts) * args.images,
    )
