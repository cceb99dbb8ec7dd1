"""What a G²RPO rollout costs here, and what it costs when everything is recomputed as in the official code.

    python benchmarks/sampler_cost.py

On the embedded digits model, for the granularities {1}, {1, 2} and {1, 2, 3} of the paper's rollout (16 steps, stochastic
steps 0 … 7, groups of 12), one prompt is sampled from the same noises in three ways:

- ``official``: our restatement of the official loops: one state at a time, the velocity of a stochastic step again for
  every branch, every tail from its start, the anchor to its end;
- ``batched``: the same evaluations, but all branches of a granularity in one batch, which the official code does not do;
- ``flowrl``: :class:`samplers.SingularStochasticSampler`, with batches of at most the same size.

Their results are checked to be equal up to float tolerance. The three take turns in one process with one thread; ratios are
taken within a turn. The second table shows the most states that are alive at any call of the network during a rollout,
for more and more steps. Writes ``benchmarks/results/sampler_cost.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from turns import machine, spread

from flowrl.config import asset_path
from flowrl.flow import Condition, FlowSDE, VelocityField
from flowrl.models import StableDiffusion3
from flowrl.shapes import seeded_generator
from samplers import ShiftedGrid, SingularStochasticSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/sampler_cost.py"
PROMPT = "seven written by hand"
STEPS, SDE_INDICES, GROUP, NOISE_LEVEL = 16, tuple(range(8)), 12, 0.7
GRANULARITIES = ((1,), (1, 2), (1, 2, 3))


class Counted:
    """A field that counts the states it is called for, and the most states alive at a call."""

    def __init__(self, field: VelocityField, *, watch: bool = False) -> None:
        self.field, self.watch = field, watch
        self.states = self.alive = 0

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: Condition) -> Tensor:
        """The velocity."""
        self.states += len(x_t)
        if self.watch:
            self.alive = max(self.alive, _alive(x_t.shape[1:]))
        return self.field(x_t, t, condition)


def _alive(state: torch.Size) -> int:
    """How many states the tensors made since ``gc.freeze`` hold."""
    found = (x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape[-len(state) :] == state)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() // x.element_size() for x in found}
    return sum(storages.values()) // state.numel()


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The inputs that all three ways share.

    Attributes:
        field: The policy.
        condition: Of one prompt.
        noise: Initial state, ``(1, *state)``.
        strides: Granularities.
        seed: Of the stochastic steps' noise.
    """

    field: VelocityField
    condition: Condition
    noise: Tensor
    strides: tuple[int, ...]
    seed: int

    @property
    def times(self) -> Tensor:
        """The grid, float32."""
        return ShiftedGrid(steps=STEPS, shift=3.0).times().float()

    def step_noise(self) -> Tensor:
        """Noise of every branch, ``(step, member, *state)``, as our sampler draws it."""
        generator = seeded_generator(self.seed)
        return torch.stack([torch.randn(GROUP, *self.noise.shape[1:], generator=generator) for _ in SDE_INDICES])

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """One call of the network for all rows of ``x``, each at its own time."""
        return self.field(x, t, self.condition[torch.zeros(len(x), dtype=torch.long)])

    def anchor(self) -> list[Tensor]:
        """States of the noise-free path from noise to data."""
        states = [self.noise]
        for t, s in pairwise(self.times):
            states.append(states[-1] + (s - t) * self.velocity(states[-1], t[None]))
        return states

    def listed(self, k: int, stride: int) -> Tensor:
        """Times of a tail: one fine step, then the stride; the last is not evaluated."""
        return torch.cat([self.times[k + 1 : k + 2], self.times[k + 2 :: stride]])


@torch.no_grad()
def official(rollout: Rollout) -> Tensor:
    """The official loops: samples, ``(member, step, granularity, *state)``."""
    anchor, noise, times, dynamics = rollout.anchor(), rollout.step_noise(), rollout.times, FlowSDE(noise_level=NOISE_LEVEL)
    samples = noise.new_empty(GROUP, len(SDE_INDICES), len(rollout.strides), *rollout.noise.shape[1:])
    for member in range(GROUP):
        for column, k in enumerate(SDE_INDICES):
            kernel = dynamics.transition(rollout.velocity(anchor[k], times[k : k + 1]), anchor[k], times[k], times[k + 1])
            child = kernel.sample(noise=noise[column, member][None])
            kernel.log_prob(child)
            for granularity, stride in enumerate(rollout.strides):
                x, listed = child, rollout.listed(k, stride)
                for t, s in pairwise(listed):
                    v = rollout.velocity(x, t[None])
                    x, data = x + (s - t) * v, x - t * v
                samples[member, column, granularity] = data[0]
    return samples


@torch.no_grad()
def batched(rollout: Rollout) -> Tensor:
    """The same evaluations with all branches of a granularity in one batch; tails that are done drop out."""
    anchor, noise, times, dynamics = rollout.anchor(), rollout.step_noise(), rollout.times, FlowSDE(noise_level=NOISE_LEVEL)
    at = torch.tensor(SDE_INDICES).repeat_interleave(GROUP)
    x = torch.cat([anchor[k].expand(GROUP, *rollout.noise.shape[1:]) for k in SDE_INDICES])
    kernel = dynamics.transition(rollout.velocity(x, times[at]), x, times[at], times[at + 1])
    children = kernel.sample(noise=noise.flatten(0, 1))
    kernel.log_prob(children)
    return torch.stack([_batched_tails(rollout, children, stride) for stride in rollout.strides], 2)


def _batched_tails(rollout: Rollout, children: Tensor, stride: int) -> Tensor:
    """All tails of one granularity, ``(member, step, *state)``."""
    lists = [rollout.listed(k, stride) for k in SDE_INDICES]
    x, samples, live = children, torch.empty_like(children), list(range(len(SDE_INDICES)))
    for depth in range(max(map(len, lists)) - 1):
        t, s = (torch.stack([lists[column][depth + ahead] for column in live]).repeat_interleave(GROUP) for ahead in (0, 1))
        v = rollout.velocity(x, t)
        data, x = x - t[:, None, None, None] * v, x + (s - t)[:, None, None, None] * v
        blocks, onward = data.split(GROUP), [column for column in live if len(lists[column]) > depth + 2]
        for place, column in enumerate(live):
            if column not in onward:
                samples[column * GROUP : (column + 1) * GROUP] = blocks[place]
        x = torch.cat([block for block, column in zip(x.split(GROUP), live, strict=True) if column in onward] or [x[:0]])
        live = onward
    return samples.unflatten(0, (len(SDE_INDICES), GROUP)).transpose(0, 1)


def flowrl(rollout: Rollout) -> Tensor:
    """Our sampler on the same inputs."""
    sampler = _sampler(STEPS, SDE_INDICES, rollout.strides)
    return sampler.sample(rollout.field, rollout.noise, rollout.condition, seeded_generator(rollout.seed)).samples


def _sampler(steps: int, indices: Sequence[int], strides: tuple[int, ...]) -> SingularStochasticSampler:
    return SingularStochasticSampler(
        grid=ShiftedGrid(steps=steps, shift=3.0),
        dynamics=FlowSDE(noise_level=NOISE_LEVEL),
        group_size=GROUP,
        sde_indices=tuple(indices),
        strides=strides,
        max_batch=GROUP * len(SDE_INDICES),
    )


WAYS: dict[str, Callable[[Rollout], Tensor]] = {"official": official, "batched": batched, "flowrl": flowrl}


def compare(rollout: Rollout, turns: int) -> dict[str, Any]:
    """Evaluations, largest difference, seconds and ratios of the three ways for one set of strides."""
    samples, evaluations = {}, {}
    for name, way in WAYS.items():
        counted = Counted(rollout.field)
        samples[name] = way(replace(rollout, field=counted))  # warms up, too
        evaluations[name] = counted.states
    differences = {name: float((samples[name] - samples["flowrl"]).abs().max()) for name in WAYS if name != "flowrl"}
    for name, difference in differences.items():
        if not difference < 1e-4:  # noqa: PLR2004  states are of order 1, and 15 float32 steps apart
            raise RuntimeError(f"the samples of {name} and flowrl differ by {difference}: the comparison would be of different mathematics")
    wall, cpu = _timed(rollout, turns)
    ratios = {
        f"{clock} ratio to {name}": spread([ours / theirs for ours, theirs in zip(taken["flowrl"], taken[name], strict=True)])
        for clock, taken in (("wall", wall), ("cpu", cpu))
        for name in differences
    }
    return {
        "strides": list(rollout.strides),
        "evaluations": evaluations,
        "largest difference to flowrl": differences,
        "wall_seconds": {name: spread(taken) for name, taken in wall.items()},
        "cpu_seconds": {name: spread(taken) for name, taken in cpu.items()},
        **ratios,
    }


def _timed(rollout: Rollout, turns: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of every turn; the order rotates from turn to turn."""
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for turn in range(turns):
        for name in names[turn % 3 :] + names[: turn % 3]:
            starts = time.perf_counter(), time.process_time()
            WAYS[name](rollout)
            wall[name].append(time.perf_counter() - starts[0])
            cpu[name].append(time.process_time() - starts[1])
    return wall, cpu


def peak_states(field: VelocityField, noise: Tensor, condition: Condition, steps: int) -> int:
    """Most states alive at any call of the network in a rollout of stochastic steps 0 … 3 and strides 1 and 2."""
    counted = Counted(field, watch=True)
    sampler = _sampler(steps, range(4), (1, 2))
    gc.collect()
    gc.freeze()
    try:
        sampler.sample(counted, noise, condition, seeded_generator(0))
    finally:
        gc.unfreeze()
    return counted.alive


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    before, after = (result["load_average"][when][0] for when in ("before", "after"))
    head = ["Λ", "evaluations: " + ", ".join(WAYS), *(f"seconds: {name}" for name in WAYS)]
    head += ["flowrl / official", "flowrl / batched", "the same, CPU time", "largest difference"]
    lines = [
        "# Cost of a G²RPO rollout",
        "",
        f"`{COMMAND}`",
        "",
        f"Embedded digits model, one prompt, {STEPS} steps, stochastic steps 0 … 7, groups of {GROUP}, at most",
        f"{GROUP * len(SDE_INDICES)} states a call. {result['machine']}; load average {before:.1f} before, {after:.1f} after.",
        f"Median [least, most] of {result['turns']} turns; a ratio is flowrl's time by the other's in the same turn.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *(_row(comparison) for comparison in result["comparisons"]),
        "",
        "Most states alive at any call of the network, stochastic steps 0 … 3, Λ = {1, 2}:",
        "",
        "| steps | states |",
        "|---|---|",
        *(f"| {steps} | {states} |" for steps, states in result["peak_states"].items()),
        "",
    ]
    return "\n".join(lines)


def _row(comparison: dict[str, Any]) -> str:
    cells = ["{" + ", ".join(map(str, comparison["strides"])) + "}"]
    cells.append(", ".join(str(comparison["evaluations"][name]) for name in WAYS))
    cells += [_cell(comparison["wall_seconds"][name]) for name in WAYS]
    cells += [_cell(comparison[name]) for name in ("wall ratio to official", "wall ratio to batched", "cpu ratio to batched")]
    cells.append(f"{max(comparison['largest difference to flowrl'].values()):.1e}")
    return "| " + " | ".join(cells) + " |"


def _cell(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} [{spread['min']:.3f}, {spread['max']:.3f}]"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()
    model = StableDiffusion3(path=str(asset_path("models/digits_sd3")), max_sequence_length=1).load("cpu")
    noise = torch.randn(1, *model.state_shape, generator=seeded_generator(1))
    field, condition = model.field(), model.encode([PROMPT])
    rollouts = [Rollout(field=field, condition=condition, noise=noise, strides=strides, seed=2) for strides in GRANULARITIES]
    result: dict[str, Any] = {
        "command": COMMAND,
        "turns": arguments.turns,
        "comparisons": [compare(rollout, arguments.turns) for rollout in rollouts],
        "peak_states": {steps: peak_states(field, noise, condition, steps) for steps in (8, 16, 32, 64)},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sampler_cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "sampler_cost.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    print(f"load average {load_before[0]:.2f} before, {os.getloadavg()[0]:.2f} after")


if __name__ == "__main__":
    main()
