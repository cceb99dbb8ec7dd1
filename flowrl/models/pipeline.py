"""What all diffusers pipelines share as image models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.flow import ClassifierFreeGuidance, Condition, VelocityField, dynamic_shift
from flowrl.models.decoder import parked_decoder
from flowrl.models.placement import all_at_work
from flowrl.models.tail_cache import cached_tail
from flowrl.models.texts import PromptEncoder
from flowrl.models.weights import load_full, load_lora, save_full, save_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowrl.models.source import DiffusersSource
    from flowrl.shapes import Time

__all__ = ["DiffusersModel", "NetworkField"]


class DiffusersModel(ABC):
    """An image model made from a diffusers pipeline; see :class:`ImageModel` for the contract.

    A subclass gives :meth:`encode_texts` and :meth:`predict`. It overrides :attr:`state_shape`, :attr:`tokens`, :meth:`pixels`,
    :meth:`schedule`, :meth:`log_shift`, :meth:`guided` or :meth:`initial_state` only where its pipeline differs from the usual: a latent
    of the network's channels, an ``AutoencoderKL``, the scheduler's own grid, plain classifier-free guidance, a state that starts as
    noise.

    The network computes in ``source.dtype``, under autocast where that is not float32, so that trained weights can be float32
    throughout. Times and velocities are float32, and so are the decoder's weights.
    """

    def __init__(self, source: DiffusersSource, pipeline: Any, device: torch.device) -> None:
        """Take over a loaded pipeline.

        Args:
            source: The configuration.
            pipeline: Its parts are on the device, frozen except for what is trained.
            device: Where it is.
        """
        self.source = source
        self.pipeline = pipeline
        self.device = device
        self.module: Any = getattr(pipeline, source.network)
        self._decoder = parked_decoder(source, pipeline, device)
        helpers = self._decoder if "vae" in source.encodes_with else []
        self._prompts = PromptEncoder(source, pipeline, device, self.encode_texts, helpers=helpers)
        self._base: dict[str, Tensor] | None = None

    # -- what an adapter gives -------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_texts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """Named embeddings, one row per text, all rows of one shape."""

    @abstractmethod
    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Call the network.

        Args:
            module: The network or a wrapper of it.
            x_t: ``(batch, *state_shape)`` in the dtype of the frozen weights.
            timestep: ``(batch,)``, float32, in the scheduler's unit: 1000 is noise.
            condition: One row per state, in the dtype of ``x_t``.

        Returns:
            ``noise − data``, the shape of ``x_t``, any dtype.
        """

    # -- usual pipelines -------------------------------------------------------------------------------------------------

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Latent channels, height, width."""
        factor = self.pipeline.vae_scale_factor
        return self.module.config.in_channels, self.source.height_of(self.pipeline) // factor, self.source.width_of(self.pipeline) // factor

    @property
    def lora_name(self) -> str:
        """What diffusers calls the network in a file of LoRA weights."""
        return self.source.network

    @property
    def tokens(self) -> int:
        """Image tokens that the network sees."""
        cell = self.source.pixels_per_token(self.pipeline)
        return (self.source.height_of(self.pipeline) // cell) * (self.source.width_of(self.pipeline) // cell)

    def pixels(self, latents: Tensor) -> Tensor:
        """One chunk of latents decoded, around [-1, 1]."""
        config = self.pipeline.vae.config
        return self.pipeline.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0), return_dict=False)[0]

    def default_times(self, steps: int) -> Tensor:
        """See :class:`ImageModel`."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(**self.schedule(steps))
        return scheduler.sigmas.clone()

    def schedule(self, steps: int) -> dict[str, Any]:
        """What the pipeline passes to its scheduler's ``set_timesteps``; override where it passes its own sigmas."""
        config = self.pipeline.scheduler.config
        return {"num_inference_steps": steps} | ({"mu": self.log_shift()} if config.use_dynamic_shifting else {})

    def linear_schedule(self, steps: int) -> dict[str, Any]:
        """The ``schedule`` of pipelines that pass a linear grid of sigmas, which the scheduler then shifts (FLUX and its relatives)."""
        sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
        return {"sigmas": sigmas} | ({"mu": self.log_shift()} if self.pipeline.scheduler.config.use_dynamic_shifting else {})

    def log_shift(self) -> float:
        """The ``mu`` that the scheduler's dynamic shifting wants: log of the time shift at this picture's number of tokens."""
        config = self.pipeline.scheduler.config
        range_of_tokens = {"base_tokens": config.base_image_seq_len, "max_tokens": config.max_image_seq_len}
        return math.log(dynamic_shift(self.tokens, **range_of_tokens, base_shift=config.base_shift, max_shift=config.max_shift))

    @property
    def negative_prompt(self) -> str:
        """What guidance leads away from, as :meth:`encode` shall see it; override where a pipeline reads it otherwise than a prompt."""
        return self.source.negative_prompt

    def guided(self, network: VelocityField) -> VelocityField:
        """The network's field with this pipeline's guidance; only asked for where ``source.guidance_scale`` is not 1.

        The usual one is :class:`flowrl.flow.ClassifierFreeGuidance`; override it where a pipeline combines the two velocities otherwise.
        """
        return ClassifierFreeGuidance(field=network, scale=self.source.guidance_scale, negative=self.encode([self.negative_prompt]))

    def initial_state(self, noise: Tensor, t: float) -> Tensor:
        """See :class:`ImageModel`."""
        del t
        return noise

    # -- the contract ----------------------------------------------------------------------------------------------------

    def prepare(self, prompts: Sequence[str]) -> None:
        """See :class:`ImageModel`; what is done is up to ``source.text_encoders``. May be called again with more prompts."""
        guided = self.source.guidance_scale != 1
        self._prompts.prepare([*prompts, self.negative_prompt] if guided else list(prompts))

    def encode(self, prompts: Sequence[str]) -> Condition:
        """See :class:`ImageModel`."""
        return self._prompts(prompts).to(self.device)

    def field(self, module: nn.Module | None = None) -> VelocityField:
        """See :class:`ImageModel`."""
        network = NetworkField(model=self, module=self.module if module is None else module)
        return network if self.source.guidance_scale == 1 else self.guided(network)

    def velocity(self, module: nn.Module, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The unguided velocity, float32; see :class:`flowrl.flow.VelocityField`.

        Raises:
            ValueError: If the time is neither a scalar nor one per state.
        """
        timestep = self.time_per_state(x_t, t) * self.pipeline.scheduler.config.num_train_timesteps
        return self.call_network(module, x_t, timestep, condition)

    def time_per_state(self, x_t: Tensor, t: Time) -> Tensor:
        """``t`` as ``(batch,)`` float32.

        Raises:
            ValueError: If it is neither a scalar nor one per state.
        """
        time = torch.as_tensor(t, dtype=torch.float32, device=x_t.device)
        if time.shape not in ((), x_t.shape[:1]):
            raise ValueError(
                f"{type(self).__name__} takes a time of shape () or ({len(x_t)},), got {tuple(time.shape)}; a picture has one noise level"
            )
        return time.expand(len(x_t))

    def call_network(self, module: nn.Module, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """What :meth:`predict` gives under the dtypes of ``source``, float32; its arguments are of any dtype."""
        storage = self.source.storage_dtype
        with self._autocast():
            prediction = self.predict(module, x.to(storage), timestep, condition.to(storage))
        return prediction.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`ImageModel`; decodes ``source.decode_batch`` at a time.

        Raises:
            ValueError: If the latents do not have the state's shape.
        """
        if tuple(latents.shape[1:]) != self.state_shape:
            raise ValueError(f"latents must be (batch, {', '.join(map(str, self.state_shape))}), got {tuple(latents.shape)}")
        chunks = latents.to(self.device, self.pipeline.vae.dtype).split(self.source.decode_batch)
        with all_at_work(self._decoder):
            return torch.cat([(self.pixels(chunk).float() / 2 + 0.5).clamp(0, 1) for chunk in chunks])

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See :class:`ImageModel`.

        With LoRA the adapter is switched off. Without, the weights are read again from ``source.path`` at the first use, so that they
        are the original ones even if training has begun or was resumed; that takes the memory of a second network.
        """
        if self.source.lora is not None:
            self.module.disable_adapters()
            try:
                yield
            finally:
                self.module.enable_adapters()
            return
        self._swap_base()
        try:
            yield
        finally:
            self._swap_base()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See :class:`ImageModel`."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def save_weights(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """See :class:`ImageModel`.

        With LoRA: ``folder/pytorch_lora_weights.safetensors``, for ``pipeline.load_lora_weights(folder, weight_name=...)``. Without:
        ``folder/transformer`` (or ``unet``), for ``from_pretrained(folder, subfolder="transformer")`` of the network's class.

        Raises:
            CheckpointError: If the files cannot be written.
        """
        if self.source.lora is None:
            save_full(self.module, Path(folder) / self.source.network, state=state)
        else:
            save_lora(self.pipeline, self.module, Path(folder), lora=self.source.lora, network=self.lora_name, state=state)

    def load_weights(self, folder: Path) -> None:
        """See :class:`ImageModel`.

        Raises:
            CheckpointError: If a file is missing or truncated, or its weights do not fit this model.
        """
        if self.source.lora is None:
            load_full(self.module, Path(folder) / self.source.network)
        else:
            load_lora(self.module, Path(folder), lora=self.source.lora, network=self.lora_name)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.source.compute_dtype
        # Without the cache: a cast that a rollout made has no graph, and must not serve an update inside the same outer autocast.
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype, cache_enabled=False)

    def _swap_base(self) -> None:
        """Exchange the storage of trained and original weights; the parameters that wrappers and optimisers hold stay the same objects."""
        if self._base is None:
            self._base = self.source.original_weights(self.pipeline, self.device)
        for name, parameter in self.module.named_parameters():
            parameter.data, self._base[name] = self._base[name], parameter.data


@dataclass(frozen=True, kw_only=True)
class NetworkField:
    """A model's unguided velocity field.

    Attributes:
        model: Whose conventions hold.
        module: What is called: the model's network or a wrapper of it.
    """

    model: DiffusersModel
    module: nn.Module

    @property
    def tail(self) -> Callable[[], AbstractContextManager[VelocityField]] | None:
        """The field with feature caching, if the source asks for it; see :func:`flowrl.flow.tail_of`."""
        cache = self.model.source.tail_cache
        return None if cache is None else partial(cached_tail, self.__call__, self.model.module, cache)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """See :class:`flowrl.flow.VelocityField`."""
        return self.model.velocity(self.module, x_t, t, condition)
