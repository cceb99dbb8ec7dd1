"""Policies composed at test time, as one policy and as a config describes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from robot.composition import Composer, Guidance, Sampling
from robot.policies import ComposablePolicy, PolicySource
from robot.types import ActionChunk, ActionSpec, Observation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flowrl.shapes import RandomSource
    from robot.composition import Composed

__all__ = ["Composition", "GPCPolicy", "MemberConfig"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GPCPolicy:
    """Several policies composed at test time (arXiv:2510.01068); it acts like any other policy.

    Chunks are aligned at the present control step, so members may differ in horizon, in history and in how far into the past their chunks
    reach. Actions are matched by name: a member may lack some of the dimensions that another has.

    Attributes:
        policies: Members.
        weights: One for each; >= 0, sum to one.
        operator: See :class:`robot.composition.Composer`.
        sampling: How chunks are drawn; None takes the most steps of any policy, the ODE unless all use the SDE, and the widest clip, none
            where a policy does not clip.
        execute_steps: Actions of a chunk to execute; None takes the fewest of any member with weight.
        every: For each policy, ask it at every so many denoising steps only; empty asks all at each.
        guidance: Terms on the composed velocity.
        vmap: See :class:`robot.composition.Composer`.
        names: Of the members, for tables; empty for their own.

    Raises:
        ValueError: If the policies cannot be composed, or a number is missing.
    """

    policies: tuple[ComposablePolicy, ...]
    weights: tuple[float, ...]
    operator: str = "convex"
    sampling: Sampling | None = None
    execute_steps: int | None = None
    every: tuple[int, ...] = ()
    guidance: tuple[Guidance, ...] = ()
    vmap: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.policies)
        if not count or len(self.weights) != count or not {len(self.every), len(self.names)} <= {0, count}:
            raise ValueError(
                f"a composition needs a weight for each of its policies (and every and names, if given, too), got {count} policies, "
                f"{len(self.weights)} weights, {len(self.every)} numbers of every and {len(self.names)} names"
            )
        if self.sampling is None:
            object.__setattr__(self, "sampling", _common_sampling([policy.sampling for policy in self.policies]))
        object.__setattr__(self, "_composer", self.composer)  # refuses what cannot be composed
        object.__setattr__(self, "_parts", {})
        if not 1 <= self.execute <= self.horizon - self.first:
            raise ValueError(f"execute_steps must lie in 1 … {self.horizon - self.first}, got {self.execute}")

    @property
    def name(self) -> str:
        """Names and weights of the members."""
        return " + ".join(f"{weight:g} {name}" for weight, name in zip(self.weights, self.member_names, strict=True))

    @property
    def member_names(self) -> tuple[str, ...]:
        """What the members are called in tables."""
        return self.names or tuple(policy.name for policy in self.policies)

    @property
    def action(self) -> ActionSpec:
        """The action of the member that has all dimensions."""
        widest = max(self.policies, key=lambda policy: policy.action.dof).action
        for policy in self.policies:
            if unknown := [name for name in policy.action.names if name not in widest.names]:
                raise ValueError(
                    f"{policy.name} has the action dimensions {unknown}, which no common policy has ({list(widest.names)}); "
                    "only equal actions can be composed: rename or convert them in its adapter"
                )
        return widest

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that any member reads."""
        return tuple(dict.fromkeys(name for policy in self.policies for name in policy.sensors))

    @property
    def history(self) -> int:
        """The most frames that any member reads."""
        return max(policy.history for policy in self.policies)

    @property
    def first(self) -> int:
        """Index of the present control step in the composed chunk."""
        return max(policy.first for policy in self.policies)

    @property
    def horizon(self) -> int:
        """Steps of the composed chunk: from the earliest step that any member covers to the last."""
        return max(self.first - policy.first + policy.horizon for policy in self.policies)

    @property
    def execute(self) -> int:
        """Actions of a chunk to execute before the next is drawn."""
        used = [p.execute for p, w in zip(self.policies, self.weights, strict=True) if w] or [p.execute for p in self.policies]
        return min(used) if self.execute_steps is None else self.execute_steps

    @property
    def composer(self) -> Composer:
        """The composition of the members, aligned in time and by the names of their actions."""
        names, clip = self.action.names, None if self.sampling is None else self.sampling.clip
        members = []
        for index, policy in enumerate(self.policies):
            dims = tuple(names.index(name) for name in policy.action.names)
            members.append(
                replace(
                    policy.member(self.weights[index]),
                    name=self.member_names[index],
                    every=self.every[index] if self.every else 1,
                    dims=None if dims == tuple(range(len(names))) else dims,
                    start=self.first - policy.first,
                )
            )
        return Composer(members, operator=self.operator, guidance=self.guidance, clip=clip, vmap=self.vmap)

    def act(self, observation: Observation, generator: RandomSource = None, weights: Tensor | None = None) -> ActionChunk:
        """The next chunk for every row.

        Args:
            observation: At least this policy's sensors and history.
            generator: Source of the noise.
            weights: ``(batch, member)``, for rows that try different weights side by side.

        Raises:
            ValueError: If nobody with weight has a say about a dimension of the action.
        """
        used = _used(self.weights, weights)
        if len(used) < len(self.policies):
            return self._only(used).act(observation, generator, None if weights is None else weights[:, list(used)])
        drawn: Composed = self._composer.compose(  # type: ignore[attr-defined]
            (len(observation), self.horizon, self.action.dof),
            steps=self.sampling.steps,  # type: ignore[union-attr]
            sampler=None if self.operator in ("and", "or", "fkc") else self.sampling.sampler,  # type: ignore[union-attr]
            generator=generator,
            condition=observation,
            weights=weights,
        )
        return ActionChunk(
            values=drawn.actions, spec=self.action, first=self.first, disagreement=drawn.disagreement, latency_s=drawn.latency_s
        )

    def _only(self, used: tuple[int, ...]) -> GPCPolicy:
        """The members with weight alone: their chunk may be shorter than what all members cover."""
        parts: dict[tuple[int, ...], GPCPolicy] = self._parts  # type: ignore[attr-defined]
        if used not in parts:
            share = sum(self.weights[index] for index in used)
            parts[used] = replace(
                self,
                policies=tuple(self.policies[index] for index in used),
                weights=tuple(self.weights[index] / share if share else 1 / len(used) for index in used),
                names=tuple(self.member_names[index] for index in used),
                every=tuple(self.every[index] for index in used) if self.every else (),
                execute_steps=self.execute,
            )
        if parts[used].action != self.action:
            lacking = [name for name in self.action.names if name not in parts[used].action.names]
            raise ValueError(f"nobody with weight acts on {', '.join(lacking)}; give a policy that does some weight")
        return parts[used]


def _used(weights: tuple[float, ...], rows: Tensor | None) -> tuple[int, ...]:
    """Members with weight, in any row."""
    return tuple(index for index, weight in enumerate(weights) if (weight if rows is None else bool(rows[:, index].any())))


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """A member of a :class:`Composition`.

    Attributes:
        policy: Where it comes from.
        weight: Its share.
        name: For tables; empty for its own.
        every: Ask it at every so many denoising steps only.
    """

    policy: PolicySource
    weight: float
    name: str = ""
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A :class:`GPCPolicy` as a config describes it.

    Attributes:
        members: Policies and weights.
        operator: See :class:`robot.composition.Composer`.
        sampling: How chunks are drawn; None goes by the policies' own, see :class:`GPCPolicy`.
        execute: Actions of a chunk to execute; None takes the fewest of any member.
    """

    members: tuple[MemberConfig, ...]
    operator: str = "convex"
    sampling: Sampling | None = None
    execute: int | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each member."""
        return tuple(member.weight for member in self.members)

    def load(self, device: str = "cpu") -> GPCPolicy:
        """Load every member.

        Raises:
            ValueError: If a policy has no Gaussian path, or they cannot be composed.
        """
        policies = tuple(_composable(member.policy.load(device)) for member in self.members)
        return GPCPolicy(
            policies=policies,
            names=tuple(config.name or policy.name for config, policy in zip(self.members, policies, strict=True)),
            weights=self.weights,
            operator=self.operator,
            sampling=self.sampling,
            execute_steps=self.execute,
            every=tuple(member.every for member in self.members),
        )


def _common_sampling(found: Sequence[Sampling]) -> Sampling:
    clips = [sampling.clip for sampling in found]
    bounds = [clip for clip in clips if clip is not None]
    return Sampling(
        steps=max(sampling.steps for sampling in found),
        sampler="sde" if all(sampling.sampler == "sde" for sampling in found) else "ode",
        clip=max(bounds) if len(bounds) == len(clips) else None,
    )


def _composable(policy: Any) -> ComposablePolicy:
    if not hasattr(policy, "member"):
        raise ValueError(
            f"{getattr(policy, 'name', type(policy).__name__)} has no Gaussian path (no method member), so it has no score to compose; "
            "diffusion and flow policies can be members (robot.PolicyFile, robot.adapters), others can only be compared by flowrl rollout"
        )
    return cast("ComposablePolicy", policy)
