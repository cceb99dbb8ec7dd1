"""How a part of a composite reward is brought to a common scale: by fixed numbers, past updates, the batch or the group."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from flowrl.rl.advantages import group_advantage

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BatchScale", "FixedScale", "GroupScale", "RunningScale", "Scale"]


class Scale(Protocol):
    """Shifts and stretches the scores of one part; NaN stays NaN."""

    @property
    def needs_groups(self) -> bool:
        """Whether whole groups must be in a batch."""
        ...

    def __call__(self, scores: Tensor, groups: Tensor) -> Tensor:
        """The scores on the common scale.

        Args:
            scores: (batch,) of one part.
            groups: (batch,) integer.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FixedScale:
    """``(score − mean) / std`` by numbers that you know, such as those of the base model in ``flowrl evaluate``. The safest choice.

    Attributes:
        mean: In the part's own unit.
        std: Likewise, > 0.

    Raises:
        ValueError: If ``std`` is not positive or a number is not finite.
    """

    mean: float
    std: float

    needs_groups: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.mean, self.std)

    def __call__(self, scores: Tensor, groups: Tensor) -> Tensor:
        """See `Scale`."""
        del groups
        return (scores - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class RunningScale:
    """``(score − mean) / std`` by the mean and standard deviation of all updates before this one, over all processes.

    An update of age a counts ``decay^a``. Within an update the scale is fixed, so a score depends on its own row only. The trainer tells
    the scores (`CompositeReward.observe`) and keeps the moments in its checkpoints; evaluation does not move them. It is for the reward
    that the trainer holds, not for a composite inside another reward, which is told nothing.

    Attributes:
        decay: In (0, 1]; 1 forgets nothing.
        mean: Until the first update is over.
        std: Likewise, > 0.
        least_std: Added to the standard deviation, so that a part that never varies stays finite.

    Raises:
        ValueError: If a number is out of its range.
    """

    decay: float = 0.99
    mean: float = 0.0
    std: float = 1.0
    least_std: float = 1.0e-6
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0], init=False, repr=False, compare=False)  # of 1, score, score²

    needs_groups: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.mean, self.std)
        if not 0 < self.decay <= 1 or not self.least_std >= 0:
            raise ValueError(f"decay must lie in (0, 1] and least_std be >= 0, got {self.decay} and {self.least_std}")

    def __call__(self, scores: Tensor, groups: Tensor) -> Tensor:
        """See `Scale`."""
        del groups
        mean, std = self.moments()
        return (scores - mean) / std

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation that are used now."""
        count, total, squares = self._sums
        if not count:
            return self.mean, self.std
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0)) + self.least_std

    def observe(self, scores: Tensor) -> None:
        """Take the scores of a whole update in, of all processes; NaN does not count."""
        known = scores[scores.isfinite()].double()
        new = (float(len(known)), float(known.sum()), float((known**2).sum()))
        self._sums[:] = [self.decay * old + more for old, more in zip(self._sums, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        self._sums[:] = state["sums"]


@dataclass(frozen=True, kw_only=True)
class BatchScale:
    """``(score − mean) / std`` over the batch that is scored at once: on one process, ``reward_batch`` pictures of one rollout part.

    The same picture gets another number in another batch, and with few pictures a noisy one; prefer `FixedScale` or `RunningScale`.
    """

    needs_groups: ClassVar[bool] = False

    def __call__(self, scores: Tensor, groups: Tensor) -> Tensor:
        """See `Scale`. A batch of equal scores becomes 0."""
        return _standardised(scores, torch.zeros_like(groups))


@dataclass(frozen=True, kw_only=True)
class GroupScale:
    """``(score − mean) / std`` over the group: every part then has the same say in every group, however little it varies there.

    With advantages that are normalised within the group after the parts were added, this is the difference between adding raw scores and
    adding advantages (G²RPO's choice; `flowrl.rl.MultiGranularityAdvantage` does it by itself).
    """

    needs_groups: ClassVar[bool] = True

    def __call__(self, scores: Tensor, groups: Tensor) -> Tensor:
        """See `Scale`. A group of equal scores, or with one that is known, becomes 0."""
        return _standardised(scores, groups)


def _standardised(scores: Tensor, groups: Tensor) -> Tensor:
    """`group_advantage` of the rows that have a score."""
    known = scores.isfinite()
    _, index, counts = groups[known].unique(return_inverse=True, return_counts=True)
    several = counts[index] > 1
    values = torch.zeros(len(index), dtype=torch.float32, device=scores.device)
    if several.any():
        values[several] = group_advantage(scores[known][several].float(), groups[known][several])
    result = torch.full(scores.shape, torch.nan, device=scores.device)
    result[known] = values
    return result


def _check(mean: float, std: float) -> None:
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"mean must be finite and std > 0, got {mean} and {std}")
