"""Z-Image and Z-Image-Turbo, and everything else that diffusers loads as a ``ZImagePipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from flowrl.errors import ConfigError
from flowrl.flow import ClassifierFreeGuidance, IntervalGuidance, NormLimitingGuidance
from flowrl.models.padding import pad_tokens, valid_tokens
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowrl.flow import Condition, VelocityField

__all__ = ["ZImage", "ZImageModel"]

_PATCH = 2  # latent pixels per side of a token
_PIXELS = 1024  # per side, the pipeline's own size


class ZImageModel(DiffusersModel):
    """A ``ZImagePipeline`` as an image model (arXiv:2511.22699).

    The network's time runs from 0, noise, to 1, and it predicts data − noise.
    """

    source: ZImage

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) and ``prompt_mask`` (batch, token) of Qwen3, of the user's side of a conversation."""
        rows, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.source.max_sequence_length
        )
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows], batch_first=True)
        embeds, mask = pad_tokens(pad_sequence(rows, batch_first=True), mask, self.source.max_sequence_length)
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def schedule(self, steps: int) -> dict[str, Any]:
        """A linear grid, shifted by the scheduler."""
        return self.linear_schedule(steps)

    def guided(self, network: VelocityField) -> VelocityField:
        """Guidance with as much of a limit and an end as the configuration gives it."""
        source = self.source
        parts: dict[str, Any] = {"field": network, "scale": source.guidance_scale, "negative": self.encode([self.negative_prompt])}
        limited = source.normalization > 0
        guidance = NormLimitingGuidance(**parts, limit=source.normalization) if limited else ClassifierFreeGuidance(**parts)
        return guidance if source.truncation == 1 else IntervalGuidance(guidance=guidance, until=1 - source.truncation)

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`; a picture is a video of one frame to the network."""
        rows = module(
            list(x_t.unsqueeze(2)),
            1 - timestep / self.pipeline.scheduler.config.num_train_timesteps,
            valid_tokens(condition.tensors["prompt_embeds"], condition.tensors["prompt_mask"]),
            return_dict=False,
        )[0]
        return -torch.stack(list(rows)).squeeze(2)


@dataclass(frozen=True, kw_only=True)
class ZImage(DiffusersSource):
    """A Z-Image pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    ``guidance_scale`` counts as everywhere in this package, where 1 is none: it is diffusers' number for this pipeline plus 1. So 1 here
    is diffusers' 0, with which the distilled Turbo is sampled, and 6 is diffusers' default of 5.

    >>> source = ZImage(path="Tongyi-MAI/Z-Image-Turbo")
    >>> source.guidance_scale
    1.0

    Attributes:
        max_sequence_length: Tokens of a prompt with what the chat template writes around it, at least 1.
        normalization: Largest length of a guided velocity, in lengths of the conditional one (diffusers' ``cfg_normalization``); 0 is no
            limit.
        truncation: Guidance acts at noise levels of at least 1 minus this, in (0, 1] (diffusers' ``cfg_truncation``); the rest costs half.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "ZImagePipeline"
    model: ClassVar[type[DiffusersModel]] = ZImageModel

    max_sequence_length: int = 512
    normalization: float = 0.0
    truncation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sequence_length < 1:
            raise ConfigError(f"max_sequence_length must be at least 1, got {self.max_sequence_length}; Z-Image's own is 512")
        if not self.normalization >= 0:
            raise ConfigError(f"normalization must be >= 0, got {self.normalization}; 0 is no limit, 1 the conditional velocity's length")
        if not 0 < self.truncation <= 1:
            raise ConfigError(f"truncation must be in (0, 1], got {self.truncation}; for no guidance use guidance_scale: 1")

    def load(self, device: torch.device | str) -> ZImageModel:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)

    def height_of(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.height_of`; the pipeline's own size is written in its code."""
        del pipeline
        return self.height or _PIXELS

    def width_of(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.width_of`."""
        del pipeline
        return self.width or _PIXELS

    def pixels_per_token(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.pixels_per_token`."""
        return pipeline.vae_scale_factor * _PATCH
