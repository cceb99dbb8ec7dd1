"""Pretraining from nothing: an autoencoder and a transformer by conditional flow matching, saved as a whole diffusers pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flowrl.errors import ConfigError, NonFiniteError
from flowrl.flow import Condition, flow_matching_loss, logit_normal_times
from flowrl.models.tiny import init_for_small_training
from flowrl.shapes import Time, randn, seeded_generator
from flowrl.train.data import CaptionedImages, ImageTextData
from flowrl.train.ema import WeightAverage
from flowrl.train.grids import save_png, to_picture
from flowrl.train.metrics import MetricsLog
from flowrl.train.optimizer import AdamW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["AutoencoderStage", "FlowStage", "PipelineBuilder", "Pretrain"]

_SAMPLE_ROWS, _SAMPLE_COLUMNS = 10, 10

logger = logging.getLogger(__name__)


class PipelineBuilder(Protocol):
    """Makes an untrained pipeline; `flowrl.models.tiny.TinySD3` is one."""

    def build(self) -> StableDiffusion3Pipeline:
        """A pipeline with random weights, on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage:
    """How the autoencoder is trained: squared error of the picture plus a weak pull of the latents towards N(0, 1).

    Attributes:
        steps: Optimiser steps; 0 keeps the autoencoder as built.
        batch_size: Pictures per step.
        kl_weight: Weight of the KL divergence to N(0, 1), per latent dimension in nats, against the squared error in [-1, 1] units.
        optimizer: With its learning-rate schedule.
    """

    steps: int = 300
    batch_size: int = 64
    kl_weight: float = 1.0e-3
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=4.0e-3, schedule="cosine", warmup_steps=20))

    def __post_init__(self) -> None:
        _check_stage(self.steps, self.batch_size, least_steps=0)


@dataclass(frozen=True, kw_only=True)
class FlowStage:
    """How the transformer is trained: the conditional flow-matching loss at logit-normal times (SD3, arXiv:2403.03206, Sec. 3.1).

    Attributes:
        steps: Optimiser steps.
        batch_size: Pictures per step.
        prompt_drop: Share of pictures whose caption is replaced by the empty prompt, so that classifier-free guidance works.
        ema_decay: Of the weight average, which is what is saved.
        optimizer: With its learning-rate schedule.
    """

    steps: int = 300
    batch_size: int = 128
    prompt_drop: float = 0.1
    ema_decay: float = 0.99
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2.0e-3, weight_decay=0.01, schedule="cosine", warmup_steps=20))

    def __post_init__(self) -> None:
        _check_stage(self.steps, self.batch_size, least_steps=1)
        if not 0 <= self.prompt_drop < 1:
            raise ValueError(f"prompt_drop must lie in [0, 1), got {self.prompt_drop}; 0.1 is usual")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a small text-to-image pipeline from random weights and save it for `StableDiffusion3Pipeline.from_pretrained`.

    The text encoders stay as built: their random features tell the captions apart, and the transformer learns to read them.

    Attributes:
        model: Makes the untrained pipeline.
        data: Captioned pictures of the pipeline's own size.
        save_to: Folder of the saved pipeline.
        run_dir: Folder of `metrics.jsonl` and `samples.png`.
        autoencoder: First stage.
        flow: Second stage.
        max_sequence_length: Tokens kept for the third text encoder; the pipeline must be called with the same number.
        max_grad_norm: Gradients are scaled down to this norm, both stages.
        sample_steps: Denoising steps of `samples.png`, drawn without guidance.
        log_every: Optimiser steps per line of `metrics.jsonl`.
        seed: Of batches, noise and the adaptive norms' first weights; the pipeline's other weights have their own seed.
        device: Where to train.
    """

    model: PipelineBuilder
    data: ImageTextData
    save_to: str
    run_dir: str
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    flow: FlowStage = field(default_factory=FlowStage)
    max_sequence_length: int = 1
    max_grad_norm: float = 1.0
    sample_steps: int = 16
    log_every: int = 10
    seed: int = 0
    device: str = "cpu"

    def run(self) -> Path:
        """Train both stages, draw samples, save the pipeline.

        Returns:
            The folder of the saved pipeline.

        Raises:
            ConfigError: If the pictures do not have the size the pipeline makes, or a caption is longer than its text encoders read.
            NonFiniteError: If a loss is not finite.
        """
        data = self.data.load()
        pipeline = self.model.build()
        _check_fit(pipeline, data)
        pipeline.to(self.device)
        run_dir = Path(self.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        log = MetricsLog(run_dir, keep_before=0, keep_evaluation=False)
        latents = self._train_autoencoder(pipeline.vae, 2 * data.images.to(self.device) - 1, log)
        average = self._train_flow(pipeline, latents, data.captions, log)
        with average.applied():
            pipeline.save_pretrained(self.save_to, safe_serialization=True)
            self._draw_samples(pipeline, data.captions, run_dir / "samples.png")
        logger.info("pipeline: %s, samples and metrics: %s", self.save_to, run_dir)
        return Path(self.save_to)

    def _train_autoencoder(self, vae: AutoencoderKL, pictures: Tensor, log: MetricsLog) -> Tensor:
        """Train, then set the scaling so that latents have mean 0 and std 1. Returns the latents of all pictures."""
        stage, generator = self.autoencoder, seeded_generator(self.seed, 0)

        def loss() -> Tensor:
            batch = pictures[_draw(len(pictures), stage.batch_size, generator)]
            posterior = vae.encode(batch).latent_dist
            latent = posterior.mean + posterior.std * randn(posterior.mean.shape, generator, device=batch.device)
            error = torch.nn.functional.mse_loss(vae.decode(latent).sample, batch)
            return error + stage.kl_weight * posterior.kl().mean() / latent[0].numel()

        vae.train()
        self._descend("autoencoder", vae, loss, stage, log)
        vae.eval()
        with torch.no_grad():
            latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures.split(256)])
        shift, scale = float(latents.mean()), 1 / float(latents.std())
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
        return (latents - shift) * scale

    def _train_flow(
        self, pipeline: StableDiffusion3Pipeline, latents: Tensor, captions: Sequence[Sequence[str]], log: MetricsLog
    ) -> WeightAverage:
        """Train the transformer; its averaged weights are returned."""
        stage, generator = self.flow, seeded_generator(self.seed, 1)
        transformer = pipeline.transformer
        init_for_small_training(transformer, generator=generator)
        texts = sorted({text for wordings in captions for text in wordings})
        condition = self._encode(pipeline, ["", *texts])
        row = {text: number for number, text in enumerate(texts, start=1)}
        velocity = _transformer_field(transformer)

        def loss() -> Tensor:
            pictures = _draw(len(latents), stage.batch_size, generator)
            texts = _draw_captions([captions[index] for index in pictures.tolist()], stage.prompt_drop, generator)
            data = latents[pictures]
            noise = randn(data.shape, generator, device=data.device)
            t = logit_normal_times(len(data), generator).to(data.device)
            return flow_matching_loss(velocity, data, noise, t, condition[[row.get(text, 0) for text in texts]]).mean()

        average = WeightAverage(list(transformer.parameters()), stage.ema_decay)
        transformer.train()
        self._descend("flow", transformer, loss, stage, log, average)
        transformer.eval()
        return average

    def _encode(self, pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> Condition:
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
            )
        return Condition({"prompt_embeds": embeds, "pooled": pooled})

    def _descend(
        self,
        name: str,
        module: nn.Module,
        loss: Callable[[], Tensor],
        stage: AutoencoderStage | FlowStage,
        log: MetricsLog,
        average: WeightAverage | None = None,
    ) -> None:
        """Minimise a loss, with a progress bar; one line of metrics every `log_every` steps holds the mean loss since the last."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        optimizer, schedule = stage.optimizer.build(module.parameters(), max(stage.steps, 1))
        recent: list[float] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task(name, total=stage.steps)
            for step in range(1, stage.steps + 1):
                recent.append(self._step(module, loss, optimizer, f"{name} step {step}"))
                schedule.step()
                if average is not None:
                    average.step()
                progress.update(task, advance=1, description=f"{name} loss {recent[-1]:.4f}")
                if step % self.log_every == 0 or step == stage.steps:
                    mean = sum(recent) / len(recent)
                    log.write({"kind": "train", "stage": name, "update": step, "loss": mean, "lr": schedule.get_last_lr()[0]})
                    recent.clear()

    def _step(self, module: nn.Module, loss: Callable[[], Tensor], optimizer: Optimizer, where: str) -> float:
        value = loss()
        if not torch.isfinite(value):
            raise NonFiniteError(f"the loss of {where} is {float(value)}; use a smaller learning rate, or look for non-finite pixels in the data")
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm)
        optimizer.step()
        return float(value)

    def _draw_samples(self, pipeline: StableDiffusion3Pipeline, captions: Sequence[Sequence[str]], path: Path) -> None:
        """One row of pictures per caption (the first wording of up to ten), without guidance."""
        prompts = sorted({wordings[0] for wordings in captions})[:_SAMPLE_ROWS]
        pipeline.set_progress_bar_config(disable=True)
        pictures = pipeline(
            prompt=[prompt for prompt in prompts for _ in range(_SAMPLE_COLUMNS)],
            num_inference_steps=self.sample_steps,
            guidance_scale=1.0,
            max_sequence_length=self.max_sequence_length,
            generator=seeded_generator(self.seed, 2),
            output_type="pt",
        ).images
        rows = [torch.cat(list(row), dim=-1) for row in pictures.unflatten(0, (len(prompts), _SAMPLE_COLUMNS))]
        save_png(to_picture(torch.cat(rows, dim=-2)), path)


def _transformer_field(transformer: SD3Transformer2DModel) -> Callable[[Tensor, Time, Condition], Tensor]:
    def velocity(x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        embeds, pooled = condition.tensors["prompt_embeds"], condition.tensors["pooled"]
        prediction: Tensor = transformer(x_t, embeds, pooled, 1000 * torch.as_tensor(t), return_dict=False)[0]
        return prediction

    return velocity


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(total, (count,), generator=generator)


def _draw_captions(options: Sequence[Sequence[str]], drop: float, generator: torch.Generator) -> list[str]:
    """One wording for each picture, or the empty prompt with probability `drop`."""
    choice, dropped = torch.rand(2, len(options), generator=generator).unbind()
    return ["" if d < drop else texts[int(c * len(texts))] for texts, c, d in zip(options, choice.tolist(), dropped.tolist(), strict=True)]


def _check_stage(steps: int, batch_size: int, *, least_steps: int) -> None:
    if steps < least_steps or batch_size < 1:
        raise ValueError(f"a stage needs steps >= {least_steps} and batch_size >= 1, got steps={steps} and batch_size={batch_size}")


def _check_fit(pipeline: StableDiffusion3Pipeline, data: CaptionedImages) -> None:
    """Refuse what would only show as bad samples: pictures of another size, captions cut short."""
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    if tuple(data.images.shape[2:]) != (side, side):
        raise ConfigError(f"the pipeline makes {side} x {side} pictures, the data are {tuple(data.images.shape[2:])}; set both to one image_size")
    limit = pipeline.tokenizer_max_length
    for text in sorted({text for wordings in data.captions for text in wordings}):
        if (length := len(pipeline.tokenizer(text).input_ids)) > limit:
            raise ConfigError(
                f"the caption {text!r} is {length} tokens long, the text encoders read {limit}; "
                "list its words in the model's vocabulary, or raise text_length"
            )
