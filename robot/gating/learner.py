"""The update: from the decisions of one rollout to new weights of the gate."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowrl.errors import NonFiniteError, RatioGateError
from flowrl.shapes import seeded_generator
from flowrl.train.ema import WeightAverage
from robot.gating.gate import Gate
from robot.gating.training import GateTraining

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from robot.gating.rollouts import Experience

__all__ = ["Learner"]

_STREAM = 13  # tells these draws from others with the same seed


@dataclass(kw_only=True, eq=False)
class Learner:
    """The gate with everything that moves it.

    Attributes:
        job: The configuration.
        gate: What is trained.
        optimizer: Of the gate's parameters alone.
        schedule: Its learning rate.
        average: The weight average, if any.
    """

    job: GateTraining
    gate: Gate
    optimizer: Optimizer
    schedule: LRScheduler
    average: WeightAverage | None

    @classmethod
    def of(cls, job: GateTraining, gate: Gate) -> Learner:
        """Fresh."""
        parameters = list(gate.parameters())
        optimizer, schedule = job.optimizer.build(parameters, job.total_updates * job.epochs * job.minibatches)
        average = None if job.ema_decay is None else WeightAverage(parameters, job.ema_decay)
        return cls(job=job, gate=gate, optimizer=optimizer, schedule=schedule, average=average)

    def released(self) -> AbstractContextManager[object]:
        """A context with the weights that are evaluated and saved."""
        return nullcontext() if self.average is None else self.average.applied()

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(parameter.isfinite().all()) for parameter in self.gate.parameters())

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        state: dict[str, Any] = {"gate": self.gate, "optimizer": self.optimizer, "schedule": self.schedule, "objective": self.job.objective}
        return {name: part.state_dict() for name, part in state.items()} | (
            {} if self.average is None else {"average": self.average.state_dict()}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint.

        Raises:
            KeyError: If a part is missing.
            RuntimeError: If the weights do not fit.
        """
        self.gate.load_state_dict(state["gate"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.job.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def check_ratio(self, experience: Experience) -> float:
        """The ratio gate: before any update the recomputed ratio must be 1.

        Returns:
            The largest distance from 1.

        Raises:
            RatioGateError: If it exceeds the tolerance.
        """
        parts = torch.arange(len(experience)).split(self.job.micro_batch)
        again = torch.cat([self.gate.log_prob(experience.record, rows) for rows in parts])
        worst = float((again - experience.record.log_prob).exp().sub(1).abs().max())
        if not worst <= self.job.ratio_tolerance:
            raise RatioGateError(
                f"before the first update the ratio of every decision should be 1, but one is off by {worst:.2e} (tolerance "
                f"{self.job.ratio_tolerance:.0e}): the gate scores its own decisions otherwise than it took them. Likely causes: a gate "
                "with dropout or batch statistics, or one that reads what its record does not hold"
            )
        return worst

    def update(self, experience: Experience, update: int) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            experience: At least one chunk.
            update: Its number, which determines the order of the chunks.

        Returns:
            Metrics averaged over optimiser steps (maxima for names ending in ``_max_dev``).

        Raises:
            NonFiniteError: If a loss or gradient is not finite; like any other error it leaves everything as it was before the update.
        """
        before, collected = deepcopy(self.state_dict()), []
        try:
            for epoch in range(self.job.epochs):
                order = torch.randperm(len(experience), generator=seeded_generator(self.job.seed, _STREAM, update, epoch))
                collected += [self._optimizer_step(experience, rows) for rows in order.tensor_split(self.job.minibatches) if len(rows)]
        except BaseException:
            self.load_state_dict(before)
            raise
        return _merged([(found, 1 / len(collected)) for found in collected])

    def _optimizer_step(self, experience: Experience, rows: Tensor) -> dict[str, float]:
        """One step on some chunks, in micro-batches whose gradients add up to that of the whole."""
        total = int(experience.record.counts[rows].sum())
        parts = rows.split(self.job.micro_batch) if self.job.objective.separable else (rows,)
        metrics: list[tuple[Mapping[str, Tensor], float]] = []
        for part in parts:
            share = int(experience.record.counts[part].sum()) / total
            loss, found = self._loss(experience, part)
            (loss * share).backward()
            metrics.append((found, share))
        norm = nn.utils.clip_grad_norm_(self.gate.parameters(), self.job.max_grad_norm)
        rate = float(self.schedule.get_last_lr()[0])
        if not (bool(norm.isfinite()) and all(bool(found["loss"].isfinite()) for found, _ in metrics)):
            self.optimizer.zero_grad()
            raise NonFiniteError(
                f"the loss or gradient of the gate is not finite (gradient norm {float(norm)}); use a smaller optimizer.lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.average is not None:
            self.average.step()
        return _merged(metrics) | {"grad_norm": float(norm), "lr": rate}

    def _loss(self, experience: Experience, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Over the decisions of some chunks that count; an entry is one latent at one step."""
        record = experience.record[rows]
        law, mask = self.gate.decisions(record), record.counts.flatten(1)
        log_ratio = (law.log_prob(record.decisions) - record.log_prob).flatten(1)
        loss, metrics = self.job.objective(log_ratio, experience.advantage[rows].to(log_ratio), mask)
        with torch.set_grad_enabled(self.job.entropy_weight > 0):
            entropy = law.entropy().expand_as(record.counts).flatten(1)[mask].mean()
        if self.job.entropy_weight:
            loss = loss - self.job.entropy_weight * entropy
        return loss, {**metrics, "entropy": entropy.detach(), "loss": loss.detach()}


def _merged(metrics: Sequence[tuple[Mapping[str, Tensor | float], float]]) -> dict[str, float]:
    """Means by their shares; maxima for names ending in ``_max_dev``."""
    merged = {}
    for name in metrics[0][0]:
        values = [(float(found[name]), share) for found, share in metrics]
        merged[name] = max(value for value, _ in values) if name.endswith("_max_dev") else sum(value * share for value, share in values)
    return merged
