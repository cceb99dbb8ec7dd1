"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowrl.errors import close_match
from flowrl.rl import Reward, RewardBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CompositeReward"]


@dataclass(frozen=True, kw_only=True)
class CompositeReward:
    """The parts of several rewards side by side, each with its own weight.

    Attributes:
        rewards: Their parts must have different names.
        weights: Name of a part to its weight; a part that is left out keeps the weight that its own reward gives it. A weight of 0 reports
            a part without training on it. Complete, and in the order of the parts, once the object is made.

    Raises:
        ValueError: If there are no rewards, two have a part of the same name, a weight names no part, or a weight is not finite.
    """

    rewards: tuple[Reward, ...]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = [(name, weight) for reward in self.rewards for name, weight in reward.weights.items()]
        if not own:
            raise ValueError("a composite reward needs at least one reward, got none")
        complete = dict(own)
        if twice := sorted({name for name, _ in own if sum(name == other for other, _ in own) > 1}):
            raise ValueError(f"several rewards have a part named {', '.join(map(repr, twice))}; list each reward once")
        for name, weight in self.weights.items():
            if name not in complete:
                raise ValueError(f"weights: no reward has a part {name!r}{close_match(name, complete)}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be finite, got {weight}")
            complete[name] = weight
        object.__setattr__(self, "weights", complete)

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures by every reward; see `flowrl.rl.Reward`."""
        batches = [reward(samples, prompts) for reward in self.rewards]
        return RewardBatch({name: part for batch in batches for name, part in batch.parts.items()})
