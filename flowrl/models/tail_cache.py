"""Feature caching for the steps after the last stochastic one.

Those steps only make the picture that the reward looks at: an error there makes the reward noisier but no log-probability wrong, so a
network may skip most of its blocks where little has changed since the step before. The hooks are diffusers'. They are on only inside
:meth:`FeatureCache.active`, start with nothing remembered, and serve one path of a fixed batch of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from flowrl.flow import Condition, VelocityField
    from flowrl.shapes import Time

__all__ = ["FeatureCache", "FirstBlockCache", "TaylorSeerCache", "cached_tail"]


_PREDICTED = r"(\w*transformer_blocks|blocks|layers)\.\d+\.(attn\d?|attention|ff|ff_context|ffn|feed_forward|img_mlp|txt_mlp)"
"""Names of what a Taylor expansion predicts, in diffusers' networks."""


@dataclass(frozen=True, kw_only=True)
class FeatureCache(ABC):
    """What a network remembers between the steps of a tail."""

    hooks: ClassVar[tuple[str, ...]]

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[None]:
        """The network caches inside this context, from nothing remembered; outside it is what it was.

        Raises:
            ConfigError: If diffusers cannot cache in this network.
        """
        from diffusers.hooks import HookRegistry
        from diffusers.models.cache_utils import CacheMixin

        registry = HookRegistry.check_if_exists_or_initialize(module)
        try:
            self._enable(module)
            _look_again(registry)
            with CacheMixin.cache_context(module, "tail"):  # networks that are no CacheMixin have the same hooks
                yield
        finally:
            for name in self.hooks:
                registry.remove_hook(name, recurse=True)
            _look_again(registry)

    @abstractmethod
    def enable(self, module: nn.Module) -> None:
        """Put diffusers' hooks in, under the names in ``hooks``."""

    def _enable(self, module: nn.Module) -> None:
        try:
            self.enable(module)
        except ImportError as error:
            raise ConfigError(f"this diffusers has no {type(self).__name__} ({error}); update it, or leave tail_cache out") from error
        except (IndexError, ValueError) as error:
            raise ConfigError(f"{type(self).__name__} cannot cache in a {type(module).__name__} ({error}); leave tail_cache out") from error
        if not any(_is_hooked(part, self.hooks) for part in module.modules()):
            raise ConfigError(f"{type(self).__name__} finds nothing to cache in a {type(module).__name__}; leave tail_cache out")


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache(FeatureCache):
    """All blocks but the first are skipped where its effect has hardly changed (ParaAttention; after TeaCache, arXiv:2411.19108).

    What the others added in the last full evaluation is added again. The change is a mean over the batch: the decision is one for all
    rows, so that a sample depends slightly on which others it is drawn with.

    Attributes:
        threshold: Largest relative change of the first block's residual at which the rest is skipped, > 0.

    Raises:
        ConfigError: If the threshold is not positive.
    """

    hooks: ClassVar[tuple[str, ...]] = ("fbc_leader_block_hook", "fbc_block_hook")
    not_sharded: ClassVar[str] = (
        "FirstBlockCache decides on each process by its own rows, sharded weights need all to agree; use TaylorSeerCache"
    )

    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigError(f"threshold must be > 0, got {self.threshold}; leave tail_cache out for no caching")

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[None]:
        """See :meth:`FeatureCache.active`."""
        with ExitStack() as stack:
            for block in module.modules():
                if getattr(block, "context_pre_only", False) is True and isinstance(getattr(block, "attn", None), nn.Module):
                    stack.enter_context(_text_kept(block))
            stack.enter_context(super().active(module))
            yield

    def enable(self, module: nn.Module) -> None:
        """See :meth:`FeatureCache.enable`.

        Raises:
            ConfigError: If the weights are sharded: processes would decide differently and wait for each other for ever.
        """
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
        from torch.distributed.tensor import DTensor

        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ConfigError(self.not_sharded)
        apply_first_block_cache(module, FirstBlockCacheConfig(threshold=self.threshold))
        _check_outputs_agree(module)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerCache(FeatureCache):
    """Attention and feed-forward are predicted from earlier steps by a Taylor expansion in the step's number (arXiv:2503.06923).

    Which steps are computed is fixed: the first ``warm_up`` of a tail, and then one of every ``interval``.

    Attributes:
        interval: At least 2.
        warm_up: Steps at the start that are all computed, at least ``order + 1`` to have differences to extrapolate.
        order: Of the expansion; 0 repeats the last value.

    Raises:
        ConfigError: If a value is out of range.
    """

    hooks: ClassVar[tuple[str, ...]] = ("taylorseer_cache",)

    interval: int = 2
    warm_up: int = 2
    order: int = 1

    def __post_init__(self) -> None:
        least = {"interval": 2, "order": 0, "warm_up": self.order + 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, got {getattr(self, name)}")

    def enable(self, module: nn.Module) -> None:
        """See :meth:`FeatureCache.enable`."""
        import torch
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        config = TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warm_up,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[_PREDICTED],
        )
        apply_taylorseer_cache(module, config)


def _check_outputs_agree(module: nn.Module) -> None:
    """Refuse networks of which only some blocks return the text: diffusers' hook subtracts what the first returned from what the last did.

    Raises:
        ValueError: If they differ.
    """
    from diffusers.hooks._helpers import TransformerBlockRegistry

    kinds = {type(block) for block in module.modules() if _is_hooked(block, FirstBlockCache.hooks)}
    if len({TransformerBlockRegistry.get(kind).return_encoder_hidden_states_index is None for kind in kinds}) > 1:
        raise ValueError("some of its blocks return the text and some do not")


@contextmanager
def _text_kept(block: nn.Module) -> Iterator[None]:
    """Stable Diffusion 3's last block drops the text, where diffusers' hook subtracts it: inside this context it returns it as it was."""
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        _, hidden_states = original(*args, **kwargs)
        return kwargs["encoder_hidden_states"], hidden_states

    block.forward = forward
    try:
        yield
    finally:
        block.forward = original


@contextmanager
def cached_tail(field: VelocityField, module: nn.Module, cache: FeatureCache) -> Iterator[VelocityField]:
    """A field whose network caches, for one tail; see :func:`flowrl.flow.tail_of`.

    Args:
        field: Calls the network.
        module: The bare network.
        cache: What it remembers.
    """
    with ExitStack() as stack:
        yield _CachedField(field, module, cache, stack)


class _CachedField:
    """A batch of another size, where guidance ends for example, starts with nothing remembered."""

    def __init__(self, field: VelocityField, module: nn.Module, cache: FeatureCache, stack: ExitStack) -> None:
        self._field, self._module, self._cache, self._stack = field, module, cache, stack
        self._rows = 0

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """See :class:`flowrl.flow.VelocityField`."""
        if len(x_t) != self._rows:
            self._stack.close()
            self._stack.enter_context(self._cache.active(self._module))
            self._rows = len(x_t)
        return self._field(x_t, t, condition)


def _is_hooked(part: nn.Module, names: Sequence[str]) -> bool:
    registry: Any = getattr(part, "_diffusers_hook", None)
    return registry is not None and any(registry.get_hook(name) for name in names)


def _look_again(registry: Any) -> None:
    """Newer versions of diffusers remember where hooks are."""
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
