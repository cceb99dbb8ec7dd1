"""The update: transitions scored again under the trained weights, an objective, an optimiser step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from flowrl.errors import NonFiniteError, RatioGateError
from flowrl.rl import StepBatch
from flowrl.train.experience import Children, Experience, transition_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from flowrl.models import ImageModel
    from flowrl.rl import Objective
    from flowrl.train.ema import WeightAverage

__all__ = ["Learner", "UpdateSettings"]


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How a rollout is learned from.

    Attributes:
        micro_batch: Parents per forward and backward pass, per process; each trains all its children.
        epochs: Passes over the rollout; from the second on the ratio leaves 1 and the clip acts.
        minibatches: Optimiser steps per pass; the parents are cut into so many parts, noisiest first. As many as there are
            stochastic steps gives one optimiser step per denoising step, as the official G²RPO script for HPSv2 does.
        max_grad_norm: Gradients are scaled down to this norm.
        old_log_prob: ``rollout`` takes the old log-probabilities from the sampler; ``recompute`` takes them from a pass of the
            training network before the first step, which makes the ratio exactly 1 there even where bfloat16 kernels give other
            numbers for other batch sizes.
        ratio_tolerance: Largest allowed distance of the ratio from 1 before the first update of a run. Keep it well below the clip.

    Raises:
        ValueError: If a count is below 1 or a limit is not positive.
    """

    micro_batch: int = 8
    epochs: int = 1
    minibatches: int = 1
    max_grad_norm: float = 1.0
    old_log_prob: Literal["rollout", "recompute"] = "rollout"
    ratio_tolerance: float = 2.0e-5

    def __post_init__(self) -> None:
        for name in ("micro_batch", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_grad_norm", "ratio_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps per rollout."""
        return self.epochs * self.minibatches


@dataclass(kw_only=True)
class Learner:
    """The trained module with everything that moves it.

    Attributes:
        accelerator: Devices, processes, precision.
        model: The adapter that the module belongs to.
        prepared: ``model.module`` as accelerate wrapped it for training.
        parameters: The trained parameters.
        objective: The loss.
        optimizer: Prepared by accelerate.
        schedule: Learning-rate schedule, stepped here (accelerate would step it once per process).
        settings: How a rollout is learned from.
        average: The weight average, if any.
        steps: Optimiser steps taken since the last checkpointable state; 0 between updates.
    """

    accelerator: Accelerator
    model: ImageModel
    prepared: nn.Module
    parameters: Sequence[nn.Parameter]
    objective: Objective
    optimizer: Optimizer
    schedule: LRScheduler
    settings: UpdateSettings
    average: WeightAverage | None = None
    steps: int = 0

    def released_weights(self) -> AbstractContextManager[None]:
        """A context with the weights that are evaluated and released: the average where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def update(self, experience: Experience) -> dict[str, float]:
        """Learn from one rollout.

        Returns:
            Metrics averaged over processes, optimiser steps and micro-batches (maxima for names ending in ``_max_dev``).

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the weights are then those before that optimiser step.
        """
        self.steps = 0
        collected: list[dict[str, float]] = []
        for _ in range(self.settings.epochs):
            for parents in experience.parents_by_time().tensor_split(self.settings.minibatches):
                if len(parents):
                    collected.append(self._optimizer_step(experience, parents))
                    self.steps += 1
        self.steps = 0
        return _merge(collected)

    def rescore(self, experience: Experience) -> Tensor:
        """Log-probabilities of all children under the present training network, ``(row, step)``, without a graph."""
        log_prob = torch.full_like(experience.trajectory.log_prob, math.nan)
        field = self.model.field(self.prepared)
        with torch.no_grad():
            for parents in experience.parents_by_time().split(self.settings.micro_batch):
                children = experience.children_of(parents)
                log_prob[children.row, children.step] = experience.log_prob(transition_at(field, experience, parents), children)
        return log_prob

    def check_ratio(self, experience: Experience) -> float:
        """The ratio gate: before any update the recomputed ratio must be 1.

        Returns:
            The largest distance from 1 over all processes.

        Raises:
            RatioGateError: If it exceeds the tolerance.
        """
        deviation = (self.rescore(experience) - experience.trajectory.log_prob).exp().sub(1).abs().max()
        worst = float(self.accelerator.gather(deviation.reshape(1)).max())
        if not worst <= self.settings.ratio_tolerance:
            raise RatioGateError(
                f"before the first update the policy ratio should be 1, but it is off by {worst:.2e} (tolerance {self.settings.ratio_tolerance:.0e}): "
                "training would start from a wrong ratio. Likely causes: dropout or train() in the network; another dtype, guidance scale or "
                "prompt embedding in training than in the rollout; bfloat16 kernels that differ between batch sizes (set update.old_log_prob=recompute)"
            )
        return worst

    def _optimizer_step(self, experience: Experience, parents: Tensor) -> dict[str, float]:
        chunks = parents.split(self.settings.micro_batch)
        total = len(experience.children_of(parents))
        slopes = None if self.objective.separable else self._slopes(experience, parents)
        self.accelerator.gradient_accumulation_steps, self.accelerator.step = len(chunks), 0
        collected: list[tuple[dict[str, Tensor], float]] = []
        norm = torch.tensor(0.0)
        for chunk in chunks:
            with self.accelerator.accumulate(self.prepared):
                children = experience.children_of(chunk)
                share = len(children) / total
                if slopes is None:
                    loss, metrics = self._loss(experience, chunk, children)
                    loss = loss * share
                else:
                    loss, metrics = self._linear_loss(experience, chunk, children, slopes)
                collected.append(({"loss": loss.detach() / share, **metrics}, share))
                self.accelerator.backward(loss * len(chunks))  # accelerate divides by the number of micro-batches
                if self.accelerator.sync_gradients:
                    norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
                    self._require_finite(norm, collected)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        if self.average is not None:
            self.average.step()
        return self._reduce(collected) | {"grad_norm": float(norm), "lr": self.schedule.get_last_lr()[0]}

    def _score(self, experience: Experience, parents: Tensor, children: Children) -> tuple[Tensor, Tensor | None]:
        """Log-ratio and, where the objective asks for it, KL to the reference; ``(child,)`` each."""
        kernel = transition_at(self.model.field(self.prepared), experience, parents)
        log_ratio = experience.log_prob(kernel, children) - experience.trajectory.log_prob[children.row, children.step]
        if not getattr(self.objective, "kl_weight", 0.0) > 0:
            return log_ratio, None
        module = self.accelerator.unwrap_model(self.prepared)
        with torch.no_grad(), self.model.reference():
            reference = transition_at(self.model.field(module), experience, parents)
        return log_ratio, kernel.kl(reference)[children.parent]

    def _loss(self, experience: Experience, parents: Tensor, children: Children) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on the children of some parents, each an entry of its own."""
        log_ratio, kl = self._score(experience, parents, children)
        context = StepBatch(group_ids=experience.trajectory.group[children.row], kl_reference=None if kl is None else kl[:, None])
        advantage = experience.advantage[children.row, children.step]
        return self.objective(log_ratio[:, None], advantage[:, None], torch.ones_like(log_ratio[:, None], dtype=torch.bool), context)

    def _slopes(self, experience: Experience, parents: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Of an objective that couples entries: its derivatives by every log-ratio and KL, from a pass without a graph."""
        log_ratio = torch.zeros_like(experience.trajectory.log_prob)
        kl: Tensor | None = None
        with torch.no_grad():
            for chunk in parents.split(self.settings.micro_batch):
                children = experience.children_of(chunk)
                log_ratio[children.row, children.step], kl_part = self._score(experience, chunk, children)
                if kl_part is not None:
                    kl = torch.zeros_like(log_ratio) if kl is None else kl
                    kl[children.row, children.step] = kl_part
        every = experience.children_of(parents)
        mask = torch.zeros_like(log_ratio, dtype=torch.bool).index_put_((every.row, every.step), torch.tensor(True, device=log_ratio.device))
        leaves = [log_ratio.requires_grad_()] + ([] if kl is None else [kl.requires_grad_()])
        context = StepBatch(group_ids=experience.trajectory.group, kl_reference=kl)
        loss, metrics = self.objective(log_ratio, experience.advantage, mask, context)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return slopes[0], slopes[1] if kl is not None else None, {"loss": loss.detach(), **metrics}

    def _linear_loss(
        self, experience: Experience, parents: Tensor, children: Children, slopes: tuple[Tensor, Tensor | None, dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss linear in the log-ratios with the coupled objective's exact gradient."""
        by_ratio, by_kl, metrics = slopes
        log_ratio, kl = self._score(experience, parents, children)
        loss = (by_ratio[children.row, children.step] * log_ratio).sum()
        if kl is not None and by_kl is not None:
            loss = loss + (by_kl[children.row, children.step] * kl).sum()
        return loss, metrics

    def _require_finite(self, norm: Tensor, collected: Sequence[tuple[dict[str, Tensor], float]]) -> None:
        losses = torch.stack([metrics["loss"] for metrics, _ in collected])
        scaled = self.accelerator.scaler is not None  # fp16: the scaler skips steps whose gradients overflow
        bad = not bool(losses.isfinite().all()) or not (scaled or bool(norm.isfinite()))
        if bool(self.accelerator.gather(torch.tensor([bad], device=losses.device)).any()):  # all processes stop together
            named = [name for name, p in self.model.module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            where = f"; first parameter with a non-finite gradient: {named[0]} ({len(named)} in all)" if named else ""
            self.optimizer.zero_grad()
            raise NonFiniteError(f"optimiser step {self.steps} of this update: gradient norm {float(norm)}, losses {losses.tolist()}{where}")

    def _reduce(self, collected: Sequence[tuple[dict[str, Tensor], float]]) -> dict[str, float]:
        names = list(collected[0][0])
        local = torch.stack([torch.stack([metrics[name].float() for name in names]) for metrics, _ in collected])
        shares = torch.tensor([share for _, share in collected], device=local.device)[:, None]
        both = torch.stack([(local * shares).sum(0), local.max(0).values])
        gathered = self.accelerator.gather(both[None])
        mean, largest = gathered[:, 0].mean(0), gathered[:, 1].max(0).values
        return {name: float(largest[i] if name.endswith("_max_dev") else mean[i]) for i, name in enumerate(names)}


def _merge(collected: Sequence[dict[str, float]]) -> dict[str, float]:
    merged = {}
    for name in collected[0]:
        values = [metrics[name] for metrics in collected]
        merged[name] = max(values) if name.endswith("_max_dev") else sum(values) / len(values)
    return merged
