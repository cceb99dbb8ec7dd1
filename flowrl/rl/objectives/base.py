"""What an objective is, and what all of them share: masks, shapes and the means over what is not masked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from flowrl.rl.registry import Registry
from flowrl.shapes import float_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OBJECTIVES", "KeptSteps", "Objective", "Stateless", "StepBatch", "needs_reference", "register_objective"]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What an objective may need beside ratios and advantages; everything is optional, an objective says what it reads.

    Attributes:
        kappa: (batch, step) exact KL of each transition between the trained policy and the one that rolled out, nats,
            in the reduction of the log-ratio (mean: per dimension).
        kl_reference: (batch, step) the same to the reference model, with a graph: ``mean((μ − μ_ref)²) / (2 std²)``,
            which is :meth:`flowrl.flow.Transition.kl`.
        log_prob: (batch, step) log-probability under the policy that is trained, with a graph.
        step_std: (batch, step) standard deviation of the transitions.
        reward: (batch, part) raw scores.
        group_ids: (batch,) integer, the group of each row.
        target_advantage: (batch,) or (batch, step) a second advantage, for objectives with a target.
    """

    kappa: Tensor | None = None
    kl_reference: Tensor | None = None
    log_prob: Tensor | None = None
    step_std: Tensor | None = None
    reward: Tensor | None = None
    group_ids: Tensor | None = None
    target_advantage: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> StepBatch:
        """The given rows of everything that is there, for a micro-batch."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return StepBatch(**{name: value if value is None else value[rows] for name, value in given.items()})


class Objective(Protocol):
    """A loss on the log-ratios of stochastic steps.

    At ratio 1 its gradient is ``−A·∇log π`` averaged over the entries that the mask keeps, and masked entries get
    exactly zero gradient whatever stands there; ``flowrl.testing.check_objective`` checks both.

    Attributes:
        separable: True if the loss is a mean over kept (batch, step) entries of terms that depend on their own entry
            only. Then a batch may be split: the parts' losses, each times its share of the kept entries, add up to the
            loss of the whole.
    """

    @property
    def separable(self) -> bool:
        """Whether a batch may be split into micro-batches."""
        ...

    def __call__(
        self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, context: StepBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics.

        Args:
            log_ratio: (batch, step), log-probability under the trained policy minus that under the policy that rolled out, nats.
            advantage: (batch,) or (batch, step); no gradient goes through it.
            mask: (batch, step) bool, False for entries that must not count.
            context: What else the objective reads.

        Returns:
            The loss, a scalar in float32 or wider, and scalar metrics without a graph. Metrics are means over kept
            entries, except names that end in ``_max_dev``, which are maxima.

        Raises:
            ValueError: If shapes disagree, the mask keeps nothing, or the context lacks what is needed.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, e.g. dual variables."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


_AXES = ("batch", "step")
OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective")
register_objective = OBJECTIVES.register


def needs_reference(objective: Objective) -> bool:
    """Whether an objective reads ``context.kl_reference``: those that do have a ``kl_weight``, which turns it on."""
    return bool(getattr(objective, "kl_weight", 0.0) > 0)


class Stateless:
    """State dicts for an objective that keeps nothing between updates."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing.

        Raises:
            ValueError: If the state is another objective's.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}; was it another objective's?")


@dataclass(frozen=True, kw_only=True)
class KeptSteps:
    """The inputs of an objective after the mask: whatever stood in a masked entry is 0 there and has exactly zero gradient.

    Attributes:
        log_ratio: (batch, step), at least float32.
        advantage: (batch, step), without a graph.
        mask: (batch, step) bool.
    """

    log_ratio: Tensor
    advantage: Tensor
    mask: Tensor

    @staticmethod
    def select(log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> KeptSteps:
        """Check the shapes and blank the masked entries.

        Raises:
            ValueError: If shapes disagree, the mask is not bool, or it keeps nothing.
        """
        _check_shapes(log_ratio, advantage, mask)
        dtype = float_dtype(log_ratio)  # a clip of 1e-4 is below the resolution of bfloat16
        steps = advantage.detach().to(dtype)
        if steps.shape != log_ratio.shape:
            steps = steps[:, None].expand_as(log_ratio)
        return KeptSteps(log_ratio=_blank(log_ratio.to(dtype), mask), advantage=_blank(steps, mask), mask=mask)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of ``values``, (batch, step), over kept entries; masked ones may hold NaN."""
        return _blank(values, self.mask).sum() / self.mask.sum()

    def ratio_metrics(self) -> dict[str, Tensor]:
        """Return ``ratio_mean``, ``ratio_variance``, which is the mean of (r − 1)², and ``ratio_max_dev``, the largest distance from 1."""
        ratio = self.log_ratio.detach().exp()  # 1 in masked entries: they never set the maximum
        away = ratio - 1
        return {"ratio_mean": self.mean(ratio), "ratio_variance": self.mean(away.square()), "ratio_max_dev": away.abs().max()}

    def context_mean(self, context: StepBatch | None, name: str) -> Tensor:
        """Return the mean over kept entries of the context's ``name``.

        Raises:
            ValueError: If the context lacks it or its shape is not (batch, step).
        """
        values = None if context is None else getattr(context, name)
        if values is None:
            raise ValueError(f"this objective reads context.{name}, which is missing; pass StepBatch({name}=...), (batch, step)")
        if values.shape != self.mask.shape:
            raise ValueError(f"context.{name} must have the shape (batch, step) = {tuple(self.mask.shape)}, got {tuple(values.shape)}")
        return self.mean(values)


def _blank(values: Tensor, mask: Tensor) -> Tensor:
    """Put 0 where the mask is False by selection: a product would leave NaN * 0 = NaN, in the value and in the gradient."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _check_shapes(log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> None:
    if log_ratio.ndim != len(_AXES):
        raise ValueError(f"log_ratio must have the shape (batch, step), got {tuple(log_ratio.shape)}")
    if advantage.shape not in (log_ratio.shape, log_ratio.shape[:1]):
        batch, step = log_ratio.shape
        raise ValueError(f"advantage must have the shape ({batch},) or ({batch}, {step}), like log_ratio, got {tuple(advantage.shape)}")
    if mask.shape != log_ratio.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape {tuple(log_ratio.shape)}, like log_ratio, got {mask.dtype} of {tuple(mask.shape)}")
    if not mask.any():
        raise ValueError("mask keeps no entry, so there is no loss; leave such a batch out")
