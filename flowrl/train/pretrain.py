"""Pretraining from nothing: an autoencoder and a transformer by conditional flow matching, saved as a whole diffusers pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowrl.errors import ConfigError
from flowrl.flow import flow_matching_loss, logit_normal_times
from flowrl.models.quiet import quiet_libraries
from flowrl.models.sd3 import SD3Model, StableDiffusion3
from flowrl.models.tiny import init_for_small_training
from flowrl.shapes import randn, seeded_generator
from flowrl.train.data import CaptionedImages, ImageTextData
from flowrl.train.ema import WeightAverage
from flowrl.train.grids import save_png, to_picture
from flowrl.train.metrics import MetricsLog
from flowrl.train.stages import AutoencoderStage, FlowStage, autoencoder_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

__all__ = ["PipelineBuilder", "Pretrain"]

_SAMPLE_ROWS, _SAMPLE_COLUMNS, _SAMPLE_SCALE = 10, 10, 4

logger = logging.getLogger(__name__)


class PipelineBuilder(Protocol):
    """Makes an untrained pipeline; `flowrl.models.tiny.TinySD3` is one."""

    def build(self) -> StableDiffusion3Pipeline:
        """A pipeline with random weights, on the CPU."""
        ...


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
        sample_steps: Denoising steps of `samples.png`, drawn without guidance.
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
    sample_steps: int = 16
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
        with average.applied(), quiet_libraries():
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
            noise = randn(posterior.mean.shape, generator, device=batch.device)
            return autoencoder_loss(posterior, noise, lambda latent: vae.decode(latent).sample, batch, stage.kl_weight)

        stage.minimise("autoencoder", vae, loss, log)
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
        # The adapter's own conventions, so that what is trained here is what RL and sampling call; it remembers every caption's embedding.
        model = SD3Model(StableDiffusion3(path=self.save_to, max_sequence_length=self.max_sequence_length), pipeline, latents.device)
        velocity = model.field()

        def loss() -> Tensor:
            pictures = _draw(len(latents), stage.batch_size, generator)
            texts = _draw_captions([captions[index] for index in pictures.tolist()], stage.prompt_drop, generator)
            data = latents[pictures]
            noise = randn(data.shape, generator, device=data.device)
            t = logit_normal_times(len(data), generator).to(data.device)
            return flow_matching_loss(velocity, data, noise, t, model.encode(texts)).mean()

        average = WeightAverage(list(transformer.parameters()), stage.ema_decay)
        stage.minimise("flow", transformer, loss, log, average)
        return average

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
        picture = to_picture(torch.cat(rows, dim=-2))
        save_png(picture.resize((_SAMPLE_SCALE * picture.width, _SAMPLE_SCALE * picture.height), Image.Resampling.NEAREST), path)


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(total, (count,), generator=generator)


def _draw_captions(options: Sequence[Sequence[str]], drop: float, generator: torch.Generator) -> list[str]:
    """One wording for each picture, or the empty prompt with probability `drop`."""
    choice, dropped = torch.rand(2, len(options), generator=generator).unbind()
    return ["" if d < drop else texts[int(c * len(texts))] for texts, c, d in zip(options, choice.tolist(), dropped.tolist(), strict=True)]


def _check_fit(pipeline: StableDiffusion3Pipeline, data: CaptionedImages) -> None:
    """Refuse what would only show as bad samples: pictures of another size, captions cut short."""
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    if tuple(data.images.shape[2:]) != (side, side):
        raise ConfigError(
            f"the pipeline makes {side} x {side} pictures, the data are {tuple(data.images.shape[2:])}; set both to one image_size"
        )
    limit = pipeline.tokenizer_max_length
    for text in sorted({text for wordings in data.captions for text in wordings}):
        if (length := len(pipeline.tokenizer(text).input_ids)) > limit:
            raise ConfigError(
                f"the caption {text!r} is {length} tokens long, the text encoders read {limit}; "
                "list its words in the model's vocabulary, or raise text_length"
            )
