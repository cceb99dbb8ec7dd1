"""What cheaper tails do to the rewards: ranks within a group, and cost, of the steps after the stochastic one.

    python benchmarks/tail_acceleration.py

On the embedded digits model, G²RPO's stochastic steps 0 … 4 of 10 are drawn once; the same children are then taken to pictures by tails
of different cost, and every picture is scored by legibility. Rewards are compared with those of the fine Euler tail, which is the
policy's own sampler, within each group (one prompt, one stochastic step, 12 members):

- ``rank correlation``: Spearman's, mean over the groups and their 10 and 90 % quantiles;
- ``advantage correlation``: Pearson's of the group-standardised rewards, over all of them;
- ``block evaluations``: transformer blocks whose attention is run, in tails alone, as a share of the fine tail's;
- ``CPU time``: of the whole rollout as a share of the fine one's, in the same turn. On a model of three blocks of width 64 most of it is
  overhead; ``benchmarks/large_models.py`` has the times of large ones.

Writes ``benchmarks/results/tail_acceleration.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from turns import compare, machine, markdown_rows

from flowrl.config import asset_path
from flowrl.flow import FlowSDE
from flowrl.models import FirstBlockCache, StableDiffusion3, TaylorSeerCache
from flowrl.shapes import seeded_generator
from rewards import Legibility
from samplers import DPMSolverPP2M, Heun, ShiftedGrid, SingularStochasticSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/tail_acceleration.py"
STEPS, SDE_INDICES, GROUP, NOISE_LEVEL = 10, tuple(range(5)), 12, 0.7
FINE = "Euler, every step"


@dataclass(frozen=True)
class Tail:
    """A way to the picture, as fields of the sampler and of the model."""

    sampler: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


TAILS: dict[str, Tail] = {
    FINE: Tail(),
    "Euler, every 2nd": Tail({"strides": (2,)}),
    "Euler, every 3rd": Tail({"strides": (3,)}),
    "DPM-Solver++(2M), every 2nd": Tail({"strides": (2,), "tail_solver": DPMSolverPP2M()}),
    "DPM-Solver++(2M), every 3rd": Tail({"strides": (3,), "tail_solver": DPMSolverPP2M()}),
    "Heun, every 3rd": Tail({"strides": (3,), "tail_solver": Heun()}),
    "first block, 0.05": Tail(model={"tail_cache": FirstBlockCache(threshold=0.05)}),
    "first block, 0.1": Tail(model={"tail_cache": FirstBlockCache(threshold=0.1)}),
    "first block, 0.2": Tail(model={"tail_cache": FirstBlockCache(threshold=0.2)}),
    "first block, 0.4": Tail(model={"tail_cache": FirstBlockCache(threshold=0.4)}),
    "Taylor, every 2nd": Tail(model={"tail_cache": TaylorSeerCache(interval=2)}),
    "Taylor, every 3rd": Tail(model={"tail_cache": TaylorSeerCache(interval=3)}),
}


class Rollout:
    """One way: the same noise and the same children at every call."""

    def __init__(self, tail: Tail, prompts: Sequence[str]) -> None:
        self.prompts = prompts
        self.model = StableDiffusion3(path="assets/models/digits_sd3", max_sequence_length=1, decode_batch=256, **tail.model).load("cpu")
        self.sampler = SingularStochasticSampler(
            grid=ShiftedGrid(steps=STEPS),
            dynamics=FlowSDE(noise_level=NOISE_LEVEL),
            group_size=GROUP,
            sde_indices=SDE_INDICES,
            **({"strides": (1,)} | tail.sampler),
        )
        self.condition = self.model.encode(prompts)

    def __call__(self) -> Tensor:
        """Final latents, ``(row, step, *state)``."""
        noise = torch.randn(len(self.prompts), *self.model.state_shape, generator=seeded_generator(1))
        generators = [seeded_generator(2, prompt) for prompt in range(len(self.prompts))]
        return self.sampler.sample(self.model.field(), noise, self.condition, generators).samples[:, :, 0]

    def rewards(self) -> Tensor:
        """Legibility, ``(prompt, member, step)``."""
        samples = self()
        texts = [prompt for prompt in self.prompts for _ in range(GROUP) for _ in SDE_INDICES]
        scores = Legibility()(self.model.decode(samples.flatten(0, 1)), texts).parts["legibility"]
        return scores.reshape(len(self.prompts), GROUP, len(SDE_INDICES))

    def block_evaluations(self) -> int:
        """Attentions of blocks that one call runs, times states."""
        counted: list[int] = []
        hooks = [
            block.attn.to_q.register_forward_hook(lambda _, arguments, __: counted.append(len(arguments[0])))
            for block in self.model.module.transformer_blocks
        ]
        self()
        for hook in hooks:
            hook.remove()
        anchors = len(self.prompts) * (max(SDE_INDICES) + 1) * len(hooks)
        return sum(counted) - anchors


def ranks(scores: Tensor) -> Tensor:
    """Of the members of each group, ``(prompt, member, step)``."""
    return scores.argsort(1).argsort(1).double()


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's over the members, ``(prompt, step)``."""
    one, other = (x.double() - x.double().mean(1, keepdim=True) for x in (one, other))
    return (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt()


def standardised(scores: Tensor) -> Tensor:
    """As an advantage: mean 0 and standard deviation 1 in each group."""
    return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-6)


def measure(prompts: Sequence[str], turns: int) -> list[dict[str, Any]]:
    """A row for every tail."""
    rollouts = {name: Rollout(tail, prompts) for name, tail in TAILS.items()}
    scores = {name: rollout.rewards() for name, rollout in rollouts.items()}
    blocks = {name: rollout.block_evaluations() for name, rollout in rollouts.items()}
    ways: dict[str, Callable[[], object]] = dict(rollouts)
    times = compare(ways, turns, FINE, time.process_time)
    rows = []
    for name, found in scores.items():
        by_rank = correlation(ranks(found), ranks(scores[FINE])).flatten()
        low, high = by_rank.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        ours, fine = (standardised(x).flatten().double() for x in (found, scores[FINE]))
        rows.append(
            {
                "tail": name,
                "rank correlation": {"median": float(by_rank.mean()), "min": low, "max": high},
                "advantage correlation": float(torch.corrcoef(torch.stack([ours, fine]))[0, 1]),
                "mean reward": float(found.mean()),
                "block evaluations": blocks[name] / blocks[FINE],
                "CPU time": times[name][f"ratio to {FINE}"],
            }
        )
    return rows


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "tail_acceleration.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = asset_path("prompts/digits_eval.txt").read_text(encoding="utf-8").split("\n")
    prompts = [line for line in lines if line][: arguments.prompts]
    before = os.getloadavg()[0]
    rows = measure(prompts, arguments.turns)
    about = f"{machine()}; load average {before:.1f} before, {os.getloadavg()[0]:.1f} after."
    arguments.out.write_text(
        json.dumps({"machine": about, "prompts": len(prompts), "turns": arguments.turns, "rows": rows}, indent=1) + "\n"
    )
    text = [
        "# Cheaper tails and the order of rewards",
        "",
        f"`{COMMAND}`",
        "",
        f"Embedded digits model, {len(prompts)} prompts, {STEPS} steps, stochastic steps 0 … 4, groups of {GROUP}:",
        f"{len(prompts) * len(SDE_INDICES)} groups a row. Rank correlation with the fine tail: mean [10 %, 90 %] over groups.",
        f"CPU time of the rollout: median [least, most] of {arguments.turns} turns. {about}",
        "",
        *markdown_rows(rows),
    ]
    arguments.out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
