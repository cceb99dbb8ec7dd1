"""From transitions to a loss: log-ratios and KL under the trained weights, and the objective on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowrl.models import ImageModel
from flowrl.rl import Objective, StepBatch, needs_reference
from flowrl.train.experience import Children, Experience, transition_at

__all__ = ["Scorer", "Slopes"]


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """A coupled objective, linearised at the present weights.

    Attributes:
        by_log_ratio: Its derivatives by the log-ratios, ``(row, step)``; 0 where an entry does not count.
        by_kl: Likewise by the KL to the reference; None where there is none.
        metrics: The objective's own, with its ``loss``.
    """

    by_log_ratio: Tensor
    by_kl: Tensor | None
    metrics: dict[str, Tensor]

    def scaled(self, factor: float) -> Slopes:
        """The slopes of so many times the objective."""
        return replace(self, by_log_ratio=self.by_log_ratio * factor, by_kl=None if self.by_kl is None else self.by_kl * factor)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """The policy's view of stored transitions.

    Attributes:
        model: The adapter.
        trained: Its network as accelerate prepared it; gradients go through here.
        bare: The same network unwrapped, for passes without a gradient.
        objective: The loss.
        micro_batch: Parents per pass.
    """

    model: ImageModel
    trained: nn.Module
    bare: nn.Module
    objective: Objective
    micro_batch: int

    @torch.no_grad()
    def log_prob(self, experience: Experience) -> Tensor:
        """Log-probabilities of all children under the present weights, ``(row, step)``, without a graph."""
        log_prob = torch.full_like(experience.trajectory.log_prob, torch.nan)
        field = self.model.field(self.trained)
        for parents in experience.parents_by_time().split(self.micro_batch):
            children = experience.children_of(parents)
            log_prob[children.row, children.step] = experience.log_prob(transition_at(field, experience, parents), children)
        return log_prob

    def loss(self, experience: Experience, parents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A separable objective on the children of some parents, each an entry of its own; the metrics hold the ``loss``."""
        children = experience.children_of(parents)
        log_ratio, kl = self._score(experience, parents, children)
        entries = log_ratio[:, None]
        context = StepBatch(group_ids=experience.trajectory.group[children.row], kl_reference=None if kl is None else kl[:, None])
        advantage = experience.advantage[children.row, children.step][:, None]
        counts = experience.counts(children)
        loss, metrics = self.objective(entries, advantage, _at_least_one(counts)[:, None], context)
        return loss, {"loss": loss.detach(), **metrics}

    def slopes(self, experience: Experience, parents: Tensor) -> Slopes:
        """A first pass, without a graph, for an objective that couples entries; it sees this process's entries only."""
        log_ratio, kl, mask = self._score_all(experience, parents)
        leaves = [entries.requires_grad_() for entries in (log_ratio, kl) if entries is not None]
        context = StepBatch(group_ids=experience.trajectory.group, kl_reference=kl)
        loss, metrics = self.objective(log_ratio, experience.advantage, _at_least_one(mask), context)
        by_log_ratio, *rest = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return Slopes(by_log_ratio=by_log_ratio, by_kl=rest[0] if rest else None, metrics={"loss": loss.detach(), **metrics})

    def linear_loss(self, experience: Experience, parents: Tensor, slopes: Slopes) -> Tensor:
        """The second pass: over all micro-batches these add up to a loss with the coupled objective's exact gradient."""
        children = experience.children_of(parents)
        log_ratio, kl = self._score(experience, parents, children)
        loss = (slopes.by_log_ratio[children.row, children.step] * log_ratio).sum()
        if kl is None or slopes.by_kl is None:
            return loss
        return loss + (slopes.by_kl[children.row, children.step] * kl).sum()

    def _score(self, experience: Experience, parents: Tensor, children: Children) -> tuple[Tensor, Tensor | None]:
        """Log-ratio and, where the objective asks for it, KL to the reference; ``(child,)`` each."""
        kernel = transition_at(self.model.field(self.trained), experience, parents)
        log_ratio = experience.log_prob(kernel, children) - experience.trajectory.log_prob[children.row, children.step]
        if not needs_reference(self.objective):
            return log_ratio, None
        with torch.no_grad(), self.model.reference():
            reference = transition_at(self.model.field(self.bare), experience, parents)
        return log_ratio, kernel.kl(reference)[children.parent]

    @torch.no_grad()
    def _score_all(self, experience: Experience, parents: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-ratio, KL and the mask of what was scored, ``(row, step)`` each."""
        log_ratio = torch.zeros_like(experience.trajectory.log_prob)
        mask = torch.zeros_like(log_ratio, dtype=torch.bool)
        kl = None
        for chunk in parents.split(self.micro_batch):
            children = experience.children_of(chunk)
            log_ratio[children.row, children.step], part = self._score(experience, chunk, children)
            mask[children.row, children.step] = experience.counts(children)
            if part is not None:
                kl = torch.zeros_like(log_ratio) if kl is None else kl
                kl[children.row, children.step] = part
        return log_ratio, kl, mask


def _at_least_one(mask: Tensor) -> Tensor:
    """The mask, or all of it where it keeps nothing: that loss is multiplied by 0, but processes wait for each other's gradients."""
    return mask if mask.any() else torch.ones_like(mask)
