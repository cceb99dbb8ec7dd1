"""Draw pictures into one grid, with the base weights or a checkpoint's.

Examples:
  flowrl sample image/digits_g2rpo --prompt seven --prompt two --images 4 --out base.png
  flowrl sample runs/digits_g2rpo --checkpoint 20 --prompt seven --out tuned.png

A run folder means its newest checkpoint, a config the base weights. Prompts that are left out are those of the evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from flowrl.train import Evaluation
    from flowrl.train.trainer import RLTrainer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("source", metavar="CONFIG|RUN", help="a config, or a folder that flowrl train wrote")
    parser.add_argument("--checkpoint", metavar="C", help="a checkpoint's folder, or the updates it was taken after (of a RUN)")
    parser.add_argument("--prompt", action="append", default=[], help="what to draw; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt file, in any of the formats of flowrl evaluate; jsonl may hold facts")
    parser.add_argument("--images", type=int, default=1, help="pictures of each prompt (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="where to write the PNG (default grid.png)")


def run(args: argparse.Namespace) -> int:
    """Draw, score with the trained reward, write the grid."""
    from flowrl.cli.console import load_trainer, say
    from flowrl.cli.weights import find_checkpoint, load_checkpoint_weights, load_model
    from flowrl.train.grids import save_png

    trainer, folder = load_trainer(args.source)
    drawing = _drawing(trainer, args)
    checkpoint = find_checkpoint(folder or Path(), args.checkpoint) if folder or args.checkpoint else None
    model = load_model(trainer)
    if checkpoint is not None:
        load_checkpoint_weights(model, checkpoint)
    result = drawing.run(model)
    say(str(save_png(result.grid(str(checkpoint or "base weights")), args.out)))
    return 0


def _drawing(trainer: RLTrainer, args: argparse.Namespace) -> Evaluation:
    """The run's evaluation with these prompts, scored by the trained reward alone."""
    from dataclasses import replace

    from flowrl.errors import ConfigError
    from flowrl.train.prompts import load_prompts

    if trainer.evaluation is None:
        raise ConfigError(f"{args.source} has no evaluation, whose sampler draws the pictures; add evaluation.sampler to it")
    known = {str(prompt): prompt for prompt in reversed([*trainer.evaluation.texts, *load_prompts(trainer.prompts)])}  # with their facts
    asked = [*(known.get(prompt, prompt) for prompt in args.prompt), *(load_prompts(args.prompts) if args.prompts else [])]
    prompts = tuple(asked or trainer.evaluation.texts)
    return replace(
        trainer.evaluation,
        prompts=prompts,
        rewards=(trainer.reward,),
        images_per_prompt=args.images,
        seed=args.seed,
        keep=len(prompts) * args.images,
    )
