"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import close_match
from flowrl.rl import Reward, RewardBatch, submit_scores
from rewards.scales import Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["CompositeReward"]

_SUFFIX = "_normalised"


@dataclass(frozen=True, kw_only=True)
class CompositeReward:
    """The parts of several rewards side by side, each with its own weight and, if wanted, on a common scale.

    A part that is normalised is reported twice: as it is with weight 0, and as ``name_normalised`` with its weight.

    Attributes:
        rewards: Their parts must have different names. They may be on servers, which then work at the same time, or compare samples of a
            group.
        weights: Name of a part to its weight; a part that is left out keeps the weight that its own reward gives it. A weight of 0 reports
            a part without training on it. Complete, and in the order of the parts, once the object is made.
        normalise: Name of a part to its scale: `rewards.FixedScale`, `RunningScale`, `BatchScale` or `GroupScale`.

    Raises:
        ValueError: If there are no rewards, two have a part of the same name, a weight or scale names no part, or a weight is not finite.
    """

    rewards: tuple[Reward, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    normalise: Mapping[str, Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = [(name, weight) for reward in self.rewards for name, weight in reward.weights.items()]
        if not own:
            raise ValueError("a composite reward needs at least one reward, got none")
        if twice := sorted({name for name, _ in own if sum(name == other for other, _ in own) > 1}):
            raise ValueError(f"several rewards have a part named {', '.join(map(repr, twice))}; list each reward once")
        for name in self.normalise:
            if name not in dict(own):
                raise ValueError(f"normalise: no reward has a part {name!r}{close_match(name, dict(own))}")
        object.__setattr__(self, "weights", self._complete(dict(own)))

    @property
    def needs_groups(self) -> bool:
        """Whether a reward compares samples, or a scale is that of the group."""
        return any(getattr(one, "needs_groups", False) for one in (*self.rewards, *self.normalise.values()))

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score samples by every reward; see `flowrl.rl.Reward` and `flowrl.rl.GroupReward`.

        Raises:
            ValueError: If samples are to be compared and there are no groups.
        """
        if groups is None and self.needs_groups:
            raise ValueError("a part of this reward compares the samples of a group; give groups, the number of each sample's group")
        return self.submit(samples, prompts, torch.zeros(len(samples), dtype=torch.long) if groups is None else groups)()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """See `flowrl.rl.submit_scores`; rewards that work elsewhere are asked first."""
        order = sorted(range(len(self.rewards)), key=lambda index: not hasattr(self.rewards[index], "submit"))
        pending = {index: submit_scores(self.rewards[index], samples, prompts, groups) for index in order}

        def joined() -> RewardBatch:
            parts: dict[str, Tensor] = {}
            for index in range(len(self.rewards)):
                for name, part in pending[index]().parts.items():
                    parts[name] = part
                    if (scale := self.normalise.get(name)) is not None:
                        parts[name + _SUFFIX] = scale(part, groups.to(part.device))
            return RewardBatch({name: parts[name] for name in self.weights})

        return joined

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Tell running scales the scores of an update that is over.

        Args:
            scores: Name of a part to its scores, of any shape, of all processes.

        Raises:
            ValueError: If a part that a running scale waits for is not among them, because a reward around this one leaves it out.
        """
        for name, scale in self.normalise.items():
            if (observe := getattr(scale, "observe", None)) is None:
                continue
            if name not in scores:
                raise ValueError(
                    f"a running scale waits for the part {name!r}, which the reward around this one does not report; report it there with "
                    "weight 0, or take a rewards.FixedScale"
                )
            observe(scores[name])

    def state_dict(self) -> dict[str, Any]:
        """What running scales must keep in a checkpoint."""
        scales = {name: getattr(scale, "state_dict", None) for name, scale in self.normalise.items()}
        return {name: state() for name, state in scales.items() if state is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, kept in state.items():
            getattr(self.normalise[name], "load_state_dict")(kept)  # noqa: B009 - only some scales have it

    def _complete(self, own: Mapping[str, float]) -> dict[str, float]:
        """The weights of all parts; where only a part's own name is given, its weight is that of the normalised part."""
        complete: dict[str, float] = {}
        for name, weight in own.items():
            given = self.weights.get(name, weight)
            if name not in self.normalise:
                complete[name] = given
            elif name + _SUFFIX in self.weights:
                complete |= {name: self.weights.get(name, 0.0), name + _SUFFIX: self.weights[name + _SUFFIX]}
            else:
                complete |= {name: 0.0, name + _SUFFIX: given}
        for name, weight in self.weights.items():
            if name not in complete:
                raise ValueError(f"weights: no reward has a part {name!r}{close_match(name, complete)}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be finite, got {weight}")
        return complete
