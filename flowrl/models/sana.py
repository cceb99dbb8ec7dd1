"""Sana 1.0 and 1.5, and everything else that diffusers loads as a ``SanaPipeline``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowrl.errors import ConfigError
from flowrl.models.negatives import InstructedModel
from flowrl.models.padding import pad_tokens, trim_tokens
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition

__all__ = ["Sana", "SanaModel"]


class SanaModel(InstructedModel):
    """A ``SanaPipeline`` as an image model (arXiv:2410.10629).

    The published checkpoints come with a second-order solver, DPM-Solver++ on the flow's noise levels: :class:`samplers.DPMSolverPP2M` on
    ``default_times``, which start a little below 1. With that scheduler the network sees whole timesteps, as diffusers shows it.
    """

    source: Sana

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) and ``prompt_mask`` (batch, token) of Gemma, which reads the instruction first."""
        embeds, mask, _, _ = self.pipeline.encode_prompt(prompts, **self._settings(guided=False))
        return self._padded(embeds, mask)

    def encode_negatives(self, prompts: list[str]) -> dict[str, Tensor]:
        """The same of bare texts."""
        _, _, embeds, mask = self.pipeline.encode_prompt(prompts, negative_prompt=prompts, **self._settings(guided=True))
        return self._padded(embeds, mask)

    def schedule(self, steps: int) -> dict[str, Any]:
        """The scheduler's own grid."""
        return {"num_inference_steps": steps}

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        embeds, mask = trim_tokens(condition.tensors["prompt_embeds"], condition.tensors["prompt_mask"])
        if "use_flow_sigmas" in self.pipeline.scheduler.config:  # DPM-Solver's
            timestep = timestep.floor()
        prediction = module(
            hidden_states=x_t,
            timestep=timestep * self.module.config.timestep_scale,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask.long(),
            return_dict=False,
        )[0]
        return prediction[:, : x_t.shape[1]]  # a network that also predicts a variance has twice the channels

    def pixels(self, latents: Tensor) -> Tensor:
        """See :meth:`DiffusersModel.pixels`; the autoencoder has no shift."""
        return self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor, return_dict=False)[0]

    def _settings(self, *, guided: bool) -> dict[str, Any]:
        instruction = self.source.instruction
        if instruction is None:
            instruction = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        return {
            "do_classifier_free_guidance": guided,
            "device": self.device,
            "max_sequence_length": self.source.max_sequence_length,
            "complex_human_instruction": list(instruction or ()),
        }

    def _padded(self, embeds: Tensor, mask: Tensor) -> dict[str, Tensor]:
        embeds, mask = pad_tokens(embeds, mask, self.source.max_sequence_length)
        return {"prompt_embeds": embeds, "prompt_mask": mask}


@dataclass(frozen=True, kw_only=True)
class Sana(DiffusersSource):
    """A Sana pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    Pictures have the height and width that were asked for; diffusers' own ``use_resolution_binning`` has no counterpart.

    >>> source = Sana(path="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", guidance_scale=4.5)
    >>> source.max_sequence_length
    300

    Attributes:
        max_sequence_length: Tokens of a prompt after the instruction, at least 2.
        instruction: Lines that the text encoder reads before every prompt, and not before the negative prompt; None is the pipeline's own
            request to enhance the prompt (Sec. 3.1 of the paper), () none.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "SanaPipeline"
    model: ClassVar[type[DiffusersModel]] = SanaModel

    max_sequence_length: int = 300
    instruction: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sequence_length <= 1:
            raise ConfigError(f"max_sequence_length must be at least 2, got {self.max_sequence_length}; Sana's own is 300")

    def load(self, device: torch.device | str) -> SanaModel:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)

    def height_of(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.height_of`; the network knows its own size."""
        return self.height or pipeline.transformer.config.sample_size * pipeline.vae_scale_factor

    def width_of(self, pipeline: Any) -> int:
        """See :meth:`DiffusersSource.width_of`."""
        return self.width or pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
