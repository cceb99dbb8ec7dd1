"""The stages of pretraining: how long, how fast, and the loop that minimises a loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.errors import NonFiniteError
from flowrl.train.optimizer import AdamW

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch import nn
    from torch.optim import Optimizer

    from flowrl.train.ema import WeightAverage
    from flowrl.train.metrics import MetricsLog

__all__ = ["AutoencoderStage", "FlowStage", "Stage", "autoencoder_loss"]


def autoencoder_loss(
    posterior: DiagonalGaussianDistribution, noise: Tensor, decode: Callable[[Tensor], Tensor], pictures: Tensor, kl_weight: float
) -> Tensor:
    """Squared error of the decoded draw plus a weak pull of the latents towards N(0, 1) (VAE, arXiv:1312.6114, Eq. 10), a scalar.

    Args:
        posterior: Of the pictures' latents.
        noise: Standard normal, of the latents' shape.
        decode: Latents to pictures.
        pictures: What was encoded.
        kl_weight: Weight of the KL divergence, nats per latent dimension, against the mean squared error of a pixel.
    """
    latent = posterior.mean + posterior.std * noise
    error = torch.nn.functional.mse_loss(decode(latent), pictures)
    return error + kl_weight * posterior.kl().mean() / latent[0].numel()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One network, one loss.

    Attributes:
        steps: Optimiser steps; 0 keeps the network as it is.
        batch_size: Pictures per step.
        optimizer: With its learning-rate schedule.
        max_grad_norm: Gradients are scaled down to this norm.
        log_every: Optimiser steps per line of metrics.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 300
    batch_size: int = 64
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2.0e-3, schedule="cosine", warmup_steps=20))
    max_grad_norm: float = 1.0
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.log_every < 1:
            given = f"steps={self.steps}, batch_size={self.batch_size} and log_every={self.log_every}"
            raise ValueError(f"a stage needs steps >= 0, batch_size >= 1 and log_every >= 1, got {given}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0, got {self.max_grad_norm}; 1 is usual")

    def minimise(
        self, name: str, module: nn.Module, loss: Callable[[], Tensor], log: MetricsLog, average: WeightAverage | None = None
    ) -> None:
        """Minimise a loss over a network's parameters, with a progress bar.

        Args:
            name: Of the stage, for the bar and the metrics.
            module: Left in evaluation mode.
            loss: A fresh batch's loss, a scalar, each time it is called.
            log: Gets the mean loss since its last line.
            average: Takes in the weights after each step.

        Raises:
            NonFiniteError: If the loss is not finite.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        optimizer, schedule = self.optimizer.build(module.parameters(), max(self.steps, 1))
        recent: list[float] = []
        module.train()
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task(name, total=self.steps)
            for step in range(1, self.steps + 1):
                recent.append(self._step(module, loss, optimizer, f"{name} step {step}"))
                schedule.step()
                if average is not None:
                    average.step()
                progress.update(task, advance=1, description=f"{name} loss {recent[-1]:.4f}")
                if step % self.log_every == 0 or step == self.steps:
                    mean = sum(recent) / len(recent)
                    log.write({"kind": "train", "stage": name, "update": step, "loss": mean, "lr": schedule.get_last_lr()[0]})
                    recent.clear()
        module.eval()

    def _step(self, module: nn.Module, loss: Callable[[], Tensor], optimizer: Optimizer, where: str) -> float:
        value = loss()
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"the loss of {where} is {float(value.detach())}; use a smaller learning rate, or look for non-finite pixels"
            )
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm)
        optimizer.step()
        return float(value.detach())


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage(Stage):
    """How the autoencoder is trained: squared error of the picture plus a weak pull of the latents towards N(0, 1).

    Attributes:
        kl_weight: Weight of the KL divergence to N(0, 1), nats per latent dimension, against the squared error of pictures in [-1, 1].
    """

    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=4.0e-3, schedule="cosine", warmup_steps=20))
    kl_weight: float = 1.0e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight must be >= 0, got {self.kl_weight}")


@dataclass(frozen=True, kw_only=True)
class FlowStage(Stage):
    """How the transformer is trained: the conditional flow-matching loss at logit-normal times (SD3, arXiv:2403.03206, Sec. 3.1).

    Attributes:
        prompt_drop: Share of pictures whose caption is replaced by the empty prompt, so that classifier-free guidance works.
        ema_decay: Of the weight average, which is what is saved.
    """

    batch_size: int = 128
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2.0e-3, weight_decay=0.01, schedule="cosine", warmup_steps=20))
    prompt_drop: float = 0.1
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prompt_drop < 1:
            raise ValueError(f"prompt_drop must lie in [0, 1), got {self.prompt_drop}; 0.1 is usual")
