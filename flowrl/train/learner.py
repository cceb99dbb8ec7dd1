"""The update: from one rollout to new weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowrl.errors import ConfigError, NonFiniteError, RatioGateError
from flowrl.models import ImageModel
from flowrl.rl import Objective
from flowrl.train.ema import WeightAverage
from flowrl.train.parallel import full_tensor, reshard
from flowrl.train.scoring import Scorer, Slopes
from flowrl.train.settings import UpdateSettings

if TYPE_CHECKING:
    from flowrl.train.experience import Experience

__all__ = ["Learner"]

Collected = tuple[dict[str, Tensor], float]
"""Metrics of one micro-batch, and its share of the entries."""


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
        steps: Optimiser steps taken in the update under way; 0 between updates.
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

    @property
    def scorer(self) -> Scorer:
        """The trained policy's view of stored transitions."""
        return Scorer(
            model=self.model,
            trained=self.prepared,
            bare=self.accelerator.unwrap_model(self.prepared),
            objective=self.objective,
            micro_batch=self.settings.micro_batch,
        )

    @contextmanager
    def released_weights(self) -> Iterator[None]:
        """A context with the weights that are evaluated and released: the average where there is one."""
        if self.average is None:
            yield
            return
        try:
            with self.average.applied():
                reshard(self.prepared)
                yield
        finally:
            reshard(self.prepared)

    def is_finite(self) -> bool:
        """Whether all trained weights are numbers; all processes must call it."""
        return all(bool(full_tensor(parameter.isfinite().all())) for parameter in self.parameters)

    def rescore(self, experience: Experience) -> Tensor:
        """Log-probabilities of all children under the present training network, ``(row, step)``, without a graph."""
        return self.scorer.log_prob(experience)

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
                f"before the first update the policy ratio should be 1, but it is off by {worst:.2e} (tolerance "
                f"{self.settings.ratio_tolerance:.0e}): training would start from a wrong ratio. Likely causes: dropout or train() in the "
                "network; another dtype, guidance scale or prompt embedding in training than in the rollout; bfloat16 kernels that differ "
                "between batch sizes (set update.old_log_prob=recompute)"
            )
        return worst

    def update(self, experience: Experience) -> dict[str, float]:
        """Learn from one rollout.

        Returns:
            Metrics averaged over processes, optimiser steps and micro-batches (maxima for names ending in ``_max_dev``).

        Raises:
            ConfigError: If there are more minibatches than states, or samples with states of their own, to train.
            NonFiniteError: If a loss or gradient is not finite; the weights are then those before that optimiser step (DeepSpeed
                finds a gradient's fault only after it).
        """
        minibatches = self._minibatches(experience)
        self.steps = 0
        collected: list[dict[str, float]] = []
        for _ in range(self.settings.epochs):
            for parents in minibatches:
                collected.append(self._optimizer_step(experience, parents))
                self.steps += 1
        self.steps = 0
        size = self.accelerator.gather(experience.advantage.abs().mean()[None]).mean()
        return _merge(collected) | {"advantage_abs": float(size)}

    def _minibatches(self, experience: Experience) -> list[Tensor]:
        """The parents of each optimiser step of a pass."""
        count, states = self.settings.minibatches, len(experience.trajectory.parents)
        if self.settings.cut_by == "time":
            parts, problem = experience.cut_by_time(count), f"a rollout has only {states} states to train per process"
        else:
            samples = len(experience.trajectory.group)
            parts = experience.cut_by_sample(count)
            problem = f"{samples} samples per process with {states} states to train, some of them shared, do not fill them; cut_by=time may"
        if not all(map(len, parts)):
            raise ConfigError(f"minibatches is {count}, but {problem}")
        return parts

    def _optimizer_step(self, experience: Experience, parents: Tensor) -> dict[str, float]:
        scorer, chunks = self.scorer, parents.split(self.settings.micro_batch)
        total, share_of_processes = self._counting(experience, parents)
        slopes = None if self.objective.separable else scorer.slopes(experience, parents).scaled(share_of_processes)
        self.accelerator.gradient_accumulation_steps, self.accelerator.step = len(chunks), 0
        collected: list[Collected] = []
        norm, rate = torch.zeros(()), float(self.schedule.get_last_lr()[0])
        for chunk in chunks:
            with self.accelerator.accumulate(self.prepared):
                share = int(experience.counts(experience.children_of(chunk)).sum()) / total
                collected.append((self._backward(scorer, experience, chunk, share, slopes), share))
                if self.accelerator.sync_gradients:
                    norm = self._clip([metrics["loss"] for metrics, _ in collected], experience.trajectory.t[parents])
                self.optimizer.step()
                self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:  # float16: the scaler skips steps whose gradients overflow
            self.schedule.step()
            if self.average is not None:
                self.average.step()
        return self._reduce(collected) | {"grad_norm": float(norm), "lr": rate}

    def _counting(self, experience: Experience, parents: Tensor) -> tuple[float, float]:
        """Children that count, as a mean over processes, and this process's number of them in that unit: each child weighs the same."""
        mine = experience.counts(experience.children_of(parents)).sum()
        if experience.kept is None:
            return int(mine), 1.0
        mean = max(float(self.accelerator.gather(mine.reshape(1).float()).mean()), 1.0)
        return mean, int(mine) / mean

    def _backward(self, scorer: Scorer, experience: Experience, parents: Tensor, share: float, slopes: Slopes | None) -> dict[str, Tensor]:
        """Add one micro-batch's share of the gradient."""
        if slopes is None:
            loss, metrics = scorer.loss(experience, parents)
            loss = loss * share
        else:
            loss, metrics = scorer.linear_loss(experience, parents, slopes), slopes.metrics
        # accelerate divides by the number of micro-batches, except under DeepSpeed
        scale = self.accelerator.gradient_accumulation_steps if self.accelerator.state.deepspeed_plugin is None else 1
        self.accelerator.backward(loss * scale)
        return metrics

    def _clip(self, losses: Sequence[Tensor], times: Tensor) -> Tensor:
        """Scale the gradient down to the largest norm; returns the norm that it had.

        Raises:
            NonFiniteError: On every process, if a loss or the gradient of any is not finite.
        """
        norms = [None if parameter.grad is None else parameter.grad.norm() for parameter in self.parameters]  # clipping spreads a NaN
        clipped = self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        norm = torch.zeros(()) if clipped is None else full_tensor(torch.as_tensor(clipped))
        overflow_allowed = self.accelerator.scaler is not None  # float16: the scaler skips such a step
        bad = not bool(torch.stack(list(losses)).isfinite().all()) or not (overflow_allowed or bool(norm.isfinite()))
        if bool(self.accelerator.gather(torch.tensor([bad], device=self.accelerator.device)).any()):
            self.optimizer.zero_grad()
            raise NonFiniteError(f"optimiser step {self.steps} of this update: {self._what_is_bad(losses, times, norm, norms)}")
        return norm

    def _what_is_bad(self, losses: Sequence[Tensor], times: Tensor, norm: Tensor, norms: Sequence[Tensor | None]) -> str:
        for number, (loss, t) in enumerate(zip(losses, times.split(self.settings.micro_batch), strict=True)):
            if not loss.isfinite():
                return f"the loss of micro-batch {number} (noise levels {float(t.min()):.3f} to {float(t.max()):.3f}) is {float(loss)}"
        names = [name for name, parameter in self.model.module.named_parameters() if parameter.requires_grad]
        bad = [name for name, value in zip(names, norms, strict=True) if value is not None and not full_tensor(value).isfinite()]
        where = f"; first in {bad[0]}, {len(bad)} of {len(names)} parameters" if bad else ""
        return f"the gradient norm is {float(norm)} although the losses are finite{where}"

    def _reduce(self, collected: Sequence[Collected]) -> dict[str, float]:
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
