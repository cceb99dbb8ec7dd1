"""Lumina-Image 2.0, and everything else that diffusers loads as a ``Lumina2Pipeline``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from flowrl.errors import ConfigError
from flowrl.flow import ClassifierFreeGuidance, IntervalGuidance, NormKeepingGuidance, row_norm, shift_time
from flowrl.models.negatives import InstructedModel
from flowrl.models.padding import pad_tokens, trim_tokens
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowrl.flow import Condition, VelocityField

__all__ = ["Lumina2", "Lumina2Model"]

_MARGIN = 1e-5  # of a noise level: the one at which guidance ends is not guided, however it was rounded


class Lumina2Model(InstructedModel):
    """A ``Lumina2Pipeline`` as an image model (arXiv:2503.21758).

    The network's time runs from 0, noise, to 1, and it predicts data − noise.
    """

    source: Lumina2

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) and ``prompt_mask`` (batch, token) of Gemma, which reads the system prompt first."""
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, system_prompt=self.source.system_prompt, **self._settings
        )
        return self._padded(embeds, mask)

    def encode_negatives(self, prompts: list[str]) -> dict[str, Tensor]:
        """The same of bare texts."""
        _, _, embeds, mask = self.pipeline.encode_prompt(prompts, negative_prompt=prompts, **self._settings)
        return self._padded(embeds, mask)

    def schedule(self, steps: int) -> dict[str, Any]:
        """A linear grid, shifted by the scheduler."""
        return self.linear_schedule(steps)

    def guided(self, network: VelocityField) -> VelocityField:
        """Guidance that keeps the length of every row of latent pixels, and ends where ``source.truncation`` says."""
        parts: dict[str, Any] = {"field": network, "scale": self.source.guidance_scale, "negative": self.encode([self.negative_prompt])}
        guidance = NormKeepingGuidance(**parts, norm=row_norm) if self.source.normalization else ClassifierFreeGuidance(**parts)
        if self.source.truncation == 1:
            return guidance
        scheduler = self.pipeline.scheduler.config
        shift = math.exp(self.log_shift()) if scheduler.use_dynamic_shifting else scheduler.shift
        end = shift_time(torch.tensor(1 - self.source.truncation, dtype=torch.float64), shift)
        return IntervalGuidance(guidance=guidance, until=min(1.0, end.item() + _MARGIN))

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        embeds, mask = trim_tokens(condition.tensors["prompt_embeds"], condition.tensors["prompt_mask"])
        return -module(
            hidden_states=x_t,
            timestep=1 - timestep / self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]

    @property
    def _settings(self) -> dict[str, Any]:
        return {"device": self.device, "max_sequence_length": self.source.max_sequence_length}

    def _padded(self, embeds: Tensor, mask: Tensor) -> dict[str, Tensor]:
        embeds, mask = pad_tokens(embeds, mask, self.source.max_sequence_length)
        return {"prompt_embeds": embeds, "prompt_mask": mask}


@dataclass(frozen=True, kw_only=True)
class Lumina2(DiffusersSource):
    """A Lumina-Image 2.0 pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    >>> source = Lumina2(path="Alpha-VLLM/Lumina-Image-2.0", guidance_scale=4.0, truncation=0.25)
    >>> source.normalization
    True

    Attributes:
        max_sequence_length: Tokens of a prompt, the system prompt included, at least 1.
        system_prompt: What the text encoder reads before every prompt, and not before the negative prompt; None is the pipeline's own.
        normalization: Guided velocities keep the length of the conditional one (diffusers' ``cfg_normalization``).
        truncation: Share of the unshifted time, from noise on, in which guidance acts, in (0, 1]; the rest costs half. It is diffusers'
            ``cfg_trunc_ratio`` where that share is a whole number of steps, and otherwise guides one step more.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "Lumina2Pipeline"
    model: ClassVar[type[DiffusersModel]] = Lumina2Model

    max_sequence_length: int = 256
    system_prompt: str | None = None
    normalization: bool = True
    truncation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sequence_length < 1:
            raise ConfigError(f"max_sequence_length must be at least 1, got {self.max_sequence_length}; Lumina-Image 2.0's own is 256")
        if not 0 < self.truncation <= 1:
            raise ConfigError(f"truncation must be in (0, 1], got {self.truncation}; for no guidance use guidance_scale: 1")

    def load(self, device: torch.device | str) -> Lumina2Model:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)
