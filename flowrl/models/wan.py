"""Wan 2.1 and 2.2 text-to-video, and everything else that diffusers loads as a ``WanPipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import ClassifierFreeGuidance, Condition, VelocityField
from flowrl.models.experts import ExpertGuidance, TwoExperts, experts_of
from flowrl.models.latents import channel_scaled
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Wan", "WanModel"]


class WanModel(DiffusersModel):
    """A ``WanPipeline`` as a model of videos (arXiv:2503.20314); a state is (channel, latent frame, height, width).

    Wan 2.2 A14B has two experts, one for noise levels from ``boundary_ratio`` up, one below; both sample, one is trained.
    """

    source: Wan

    @property
    def lora_name(self) -> str:
        """Of either expert: diffusers knows no other name."""
        return "transformer"

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Latent channels, latent frames, height, width."""
        source, factor = self.source, self.source.pixels_per_latent(self.pipeline)
        frames = (source.num_frames - 1) // self.pipeline.vae_scale_factor_temporal + 1
        return self.module.config.in_channels, frames, source.height // factor, source.width // factor

    @property
    def tokens(self) -> int:
        """Of all latent frames."""
        return super().tokens * self.state_shape[1]

    @property
    def experts(self) -> TwoExperts | None:
        """How the two networks share the work, where there are two."""
        return experts_of(self.pipeline, trains_high=self.source.trained_expert == "high_noise")

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel), with zeros behind a text's end: the network attends to those too."""
        settings = {"do_classifier_free_guidance": False, "max_sequence_length": self.source.max_sequence_length}
        return {"prompt_embeds": self.pipeline.encode_prompt(prompts, device=self.device, **settings)[0]}

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`, and :class:`TwoExperts` for what it refuses."""
        if self.experts is None:
            return self._call(module, x_t, timestep, condition)
        return self.experts(module, timestep, lambda network, rows: self._call(network, x_t[rows], timestep[rows], condition[rows]))

    def pixels(self, latents: Tensor) -> Tensor:
        """One chunk of latents decoded, (batch, frame, 3, height, width), around [-1, 1]."""
        vae = self.pipeline.vae
        return vae.decode(channel_scaled(latents, vae.config), return_dict=False)[0].transpose(1, 2)

    def default_times(self, steps: int) -> Tensor:
        """See :class:`ImageModel`. UniPC starts 1e-6 below 1 lest its own formulas divide by 0; here that is 1."""
        times = super().default_times(steps)
        return torch.where(times > 1 - 1e-5, torch.ones_like(times), times)

    def guided(self, network: VelocityField) -> VelocityField:
        """Classifier-free guidance, with another scale at low noise where ``guidance_scale_2`` gives one."""
        high, experts, steps = super().guided(network), self.experts, self.pipeline.scheduler.config.num_train_timesteps
        if self.source.guidance_scale_2 is None or experts is None:
            return high
        low = ClassifierFreeGuidance(field=network, scale=self.source.guidance_scale_2, negative=self.encode([self.negative_prompt]))
        return ExpertGuidance(high=high, low=low, is_high=lambda t: experts.is_high(t * steps))

    def _call(self, network: Any, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        if self.pipeline.config.expand_timesteps:
            timestep = timestep[:, None].expand(-1, self.tokens)
        embeds = condition.tensors["prompt_embeds"]
        return network(hidden_states=x_t, timestep=timestep, encoder_hidden_states=embeds, return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class Wan(DiffusersSource):
    """A Wan text-to-video pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    Pictures are videos: score them with a :class:`rewards.FrameReward`.

    Attributes:
        num_frames: Of a video; one more than a multiple of the decoder's frames per latent, which is 4.
        max_sequence_length: Tokens of a prompt, at most 512.
        guidance_scale_2: Of Wan 2.2 A14B's expert of low noise; None is ``guidance_scale``.
        trained_expert: Which of the two is trained; the other stays as it is. Only steps on its side of the boundary can be trained;
            for both, train one, save the pipeline with its weights, and train the other from there. A LoRA
            of the expert of low noise loads by ``load_lora_weights(..., load_into_transformer_2=True)``.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "WanPipeline"
    model: ClassVar[type[DiffusersModel]] = WanModel

    height: int = 480
    width: int = 832
    decode_batch: int = 1
    num_frames: int = 81
    max_sequence_length: int = 512
    guidance_scale_2: float | None = None
    trained_expert: Literal["high_noise", "low_noise"] = "high_noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_expert not in ("high_noise", "low_noise"):
            raise ConfigError(f"trained_expert must be high_noise or low_noise, got {self.trained_expert!r}")
        if self.num_frames < 1 or not 1 <= self.max_sequence_length <= 512:  # noqa: PLR2004 - the text encoder's
            raise ConfigError(f"num_frames must be >= 1, max_sequence_length in 1..512; got {self.num_frames}, {self.max_sequence_length}")
        if self.guidance_scale_2 is not None and not self.guidance_scale_2 >= 1:
            raise ConfigError(f"guidance_scale_2 must be >= 1, got {self.guidance_scale_2}; 1 is no guidance")
        if self.guidance_scale == 1 and self.guidance_scale_2 not in (None, 1):
            raise ConfigError(f"guidance_scale_2 {self.guidance_scale_2:g} has no effect where guidance_scale is 1; set that above 1")
        if self.trained_expert == "low_noise":
            object.__setattr__(self, "network", "transformer_2")

    def pixels_per_latent(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.pixels_per_latent`."""
        return pipeline.vae_scale_factor_spatial

    def pixels_per_token(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.pixels_per_token`."""
        return pipeline.vae_scale_factor_spatial * getattr(pipeline, self.network).config.patch_size[1]

    def check_size(self, pipeline: Any) -> None:
        """Refuse sizes, lengths and experts that this pipeline does not have, and a pipeline that is not whole or no flow model."""
        two = experts_of(pipeline, trains_high=True) is not None
        if not two and (self.trained_expert == "low_noise" or self.guidance_scale_2 is not None):
            raise ConfigError(f"{self.path} has one transformer; leave out trained_expert and guidance_scale_2")
        if two and self.tail_cache is not None:
            raise ConfigError(f"{self.path} has two experts, between which a tail_cache cannot tell; leave tail_cache out")
        if not pipeline.scheduler.config.get("use_flow_sigmas", True):
            raise CheckpointError(f"the scheduler of {self.path} has use_flow_sigmas=False, but Wan is a flow model; save it with True")
        super().check_size(pipeline)
        if (self.num_frames - 1) % (factor := pipeline.vae_scale_factor_temporal):
            raise ConfigError(f"num_frames must be one more than a multiple of {factor} for {self.path}, got {self.num_frames}")
