"""Weights from demonstrations, without a single episode: those whose composition denoises demonstrated chunks best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import ConfigError
from flowrl.shapes import randn, seeded_generator
from robot.demonstrations.data import DemonstrationSource
from robot.evaluation.rollout import policy_device
from robot.search.quadratic import least_error_weights
from robot.search.simplex import Weights, uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from robot.composition.loop import Loop
    from robot.gpc import GPCPolicy
    from robot.types import Observation

__all__ = ["DenoisingPrior", "PriorResult", "noise_error_gram"]


@dataclass(frozen=True, kw_only=True)
class PriorResult:
    """What the demonstrations say.

    Attributes:
        weights: Of least error, on the simplex.
        gram: ``E⟨e_i, e_j⟩`` of the members' errors in the predicted noise, mean over entries, noise levels and chunks. A part that no
            policy can avoid (the noise is not determined by the noisy chunk) is in every entry and moves no optimum.
        error: ``wᵀ G w`` at the weights.
        chunks: Demonstrated chunks that it rests on.
    """

    weights: Weights
    gram: tuple[tuple[float, ...], ...]
    error: float
    chunks: int


@dataclass(frozen=True, kw_only=True)
class DenoisingPrior:
    """``argmin_w Σ_t E‖Σ w_i ε_i(x_t) − ε‖²`` over the simplex (GPC's Prop. 4.1 with the drawn noise as unbiased target).

    What it knows is imitation, not success. Take demonstrations that no member was trained on: on its own training data a member that
    overfitted looks too good.

    Attributes:
        demonstrations: Held-out ones.
        chunks: At most so many, drawn at random.
        levels: Noise levels, those of a sampler with so many steps.
        batch: Chunks per network call.
        radius: Candidates whose weights differ from the prior's by more than this in any member are left out of the search; None keeps all.
        seed: Of the chunks and the noise.

    Raises:
        ConfigError: If a number is out of range.
    """

    demonstrations: DemonstrationSource
    chunks: int = 512
    levels: int = 16
    batch: int = 64
    radius: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.chunks, self.levels, self.batch) < 1 or (self.radius is not None and not self.radius > 0):
            given = f"chunks={self.chunks}, levels={self.levels}, batch={self.batch}, radius={self.radius}"
            raise ConfigError(f"a prior needs chunks, levels and batch >= 1 and radius > 0 (or none), got {given}")

    def run(self, policy: GPCPolicy) -> PriorResult:
        """Ask every member about noisy demonstrated chunks.

        Raises:
            ConfigError: If the demonstrations have other actions than the policies.
        """
        from robot.learning.windows import Windows

        data = self.demonstrations.load()
        if data.action.names != policy.action.names:
            raise ConfigError(
                f"the demonstrations have the actions {list(data.action.names)}, the policies {list(policy.action.names)}; "
                "both must be equal"
            )
        windows = Windows.of(data.episodes, policy.sensors, horizon=policy.horizon, history=policy.history, first=policy.first)
        rows = torch.randperm(len(windows), generator=seeded_generator(self.seed, 0))[: self.chunks]
        device = policy_device(policy)
        parts = [(windows.observation(part).to(device), windows.chunks(part).to(device)) for part in rows.split(self.batch)]
        gram = noise_error_gram(policy, parts, levels=self.levels, seed=self.seed)
        weights = least_error_weights(gram)
        return PriorResult(
            weights=tuple(map(float, weights)),
            gram=tuple(tuple(map(float, row)) for row in gram),
            error=float(weights @ gram @ weights),
            chunks=len(rows),
        )

    def near(self, candidates: list[Weights], prior: Weights) -> list[Weights]:
        """The candidates within the radius; the nearest one if there is none."""
        if self.radius is None:
            return candidates
        distances = [max(abs(a - b) for a, b in zip(weights, prior, strict=True)) for weights in candidates]
        reach = max(self.radius, min(distances)) + 1e-9
        return [weights for weights, distance in zip(candidates, distances, strict=True) if distance <= reach]


@torch.no_grad()
def noise_error_gram(policy: GPCPolicy, parts: list[tuple[Observation, Tensor]], *, levels: int, seed: int = 0) -> NDArray[np.float64]:
    """``E⟨ε_i − ε, ε_j − ε⟩`` of all members, in the composition's units and at equal signal-to-noise ratio.

    Args:
        policy: The members; its weights play no part.
        parts: Observations and the chunks that were demonstrated after them, ``(batch, horizon, dof)``, physical units.
        levels: Noise levels.
        seed: Of the noise.

    Returns:
        ``(member, member)``, the mean over what all members cover.
    """
    from robot.composition.loop import Loop

    members = len(policy.policies)
    composer = replace(policy, weights=uniform(members), operator="convex", guidance=()).composer
    total, entries = np.zeros((members, members)), 0.0
    for number, (observation, chunks) in enumerate(parts):
        loop = Loop(composer, (len(chunks), policy.horizon, policy.action.dof), observation)
        covered = (loop.weights_at(1.0) > 0).all(0)
        if not bool(covered.any()):
            raise ConfigError("the members have no step and dimension in common, so their errors cannot be compared; drop the prior")
        for error in _errors(loop, chunks, levels, seeded_generator(seed, 1, number)):
            flat = torch.where(covered.to(error.device), error, 0.0).double().flatten(1)
            total += (flat @ flat.T).cpu().numpy()
            entries += float(covered.expand(error.shape[1:]).sum())
    return total / entries


def _errors(loop: Loop, chunks: Tensor, levels: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Error of each member's predicted noise at each level, ``(member, batch, horizon, dims)``."""
    from robot.composition.grid import composition_times

    data = torch.zeros(*chunks.shape[:2], loop.dims, device=chunks.device)  # private dimensions are padding: their data is 0
    data[..., : loop.dof] = loop.frame.normalise(chunks)
    for t in composition_times(loop.seats, levels)[:-1]:
        noise = randn(data.shape, generator, device=data.device)
        velocities = loop.panel.velocities((1 - t) * data + t * noise, t, 0)
        # At one state the noise and the velocity differ by the state alone: the errors by a factor.
        yield (1 - t) * (velocities - (noise - data))
