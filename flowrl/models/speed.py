"""How a network is run: attention back ends and compilation."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import ConfigError, close_match

if TYPE_CHECKING:
    from flowrl.models.options import Compile

__all__ = ["compile_network", "repeated_blocks", "use_attention"]

logger = logging.getLogger(__name__)

_EXTRAS = {"xformers": "xformers", "flash": "flash", "flash_varlen": "flash"}
_TOLERANCE = 0.05  # of an attention's output of size about 1, in bfloat16


def use_attention(network: Any, backend: str, *, device: torch.device, dtype: torch.dtype) -> None:
    """Have a diffusers network attend through a back end, after a real try of it: forward, backward, and against PyTorch's own.

    Args:
        network: On any device.
        backend: One of diffusers' names, such as ``native``, ``flash``, ``_flash_3``, ``sage`` or ``xformers``.
        device: Where the network will work.
        dtype: In which it will compute.

    Raises:
        ConfigError: If the name is unknown, the back end is not installed, it does not work here, or the network cannot switch.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    names = [member.value for member in AttentionBackendName]
    if backend not in names:
        raise ConfigError(f"unknown attention back end {backend!r}{close_match(backend, names)}")
    with _explained(backend, device, dtype):
        _try(backend, device, dtype)
        _switch(network, backend)


def compile_network(network: Any, what: Compile, backend: str) -> None:
    """``torch.compile`` in place: the network stays the object that wrappers, hooks and checkpoints know.

    Args:
        network: A diffusers network.
        what: Its repeated ``blocks`` one by one, which compiles once for all that are alike, or the whole ``network``.
        backend: Of ``torch.compile``.

    Raises:
        ConfigError: If the back end is unknown, or the network names no repeated blocks.
    """
    from torch import _dynamo

    known = _dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(f"unknown compile_backend {backend!r}{close_match(backend, known)}")
    if what == "network":
        network.compile(backend=backend)
        return
    blocks = repeated_blocks(network)
    if not blocks:
        raise ConfigError(f"{type(network).__name__} has no repeated blocks; set compile to 'network' or leave it out")
    for block in blocks:
        block.compile(backend=backend)


def repeated_blocks(network: Any) -> list[torch.nn.Module]:
    """The blocks that make up most of a network."""
    return [part for part in network.modules() if type(part).__name__ in _repeated(network)]


def _repeated(network: Any) -> set[str]:
    """Class names of the blocks that make up most of a network: those that it names, else those of its lists of blocks."""
    if named := getattr(network, "_repeated_blocks", None):
        return set(named)
    lists = [part for part in network.children() if isinstance(part, torch.nn.ModuleList)]
    return {type(block).__name__ for blocks in lists for block in blocks}


@contextlib.contextmanager
def _explained(backend: str, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever a foreign kernel raises where it is missing or does not fit
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        extra = f"; pip install 'flowrl-torch[{_EXTRAS[backend]}]' on a machine with CUDA" if backend in _EXTRAS else ""
        raise ConfigError(
            f"attention back end {backend!r} does not work here, on {device.type} in {str(dtype).removeprefix('torch.')}: {reason}"
            f"{extra}; leave `attention` out for PyTorch's own"
        ) from error


def _try(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Attention of a small random batch with its gradient, next to PyTorch's own."""
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 128, 2, 64, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    with attention_backend(backend), torch.enable_grad():
        found = dispatch_attention_fn(query, key, value)
    if not found.requires_grad:
        raise ConfigError(
            f"attention back end {backend!r} has no gradient, so that nothing can be trained through it; leave `attention` out"
        )
    found.float().square().sum().backward()
    exact = [x.detach().transpose(1, 2).float() for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(exact[0], exact[1], exact[2]).transpose(1, 2)
    worst = float((found - expected).abs().max().detach())
    if not worst < _TOLERANCE:
        raise ConfigError(f"attention back end {backend!r} is off by {worst:.2g} from PyTorch's own here; leave `attention` out")


def _switch(network: Any, backend: str) -> None:
    """Set the back end of this network alone: diffusers sets it for the whole process as well, which would reach the decoder."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    processors = [part.processor for part in network.modules() if hasattr(part, "processor")]
    switchable = [processor for processor in processors if hasattr(processor, "_attention_backend")]
    if switchable:
        with attention_backend(AttentionBackendName.NATIVE):  # puts back what was before
            network.set_attention_backend(backend)
    elif backend == "xformers" and hasattr(network, "enable_xformers_memory_efficient_attention"):
        network.enable_xformers_memory_efficient_attention()
    elif backend != "native":
        raise ConfigError(f"the attention of {type(network).__name__} takes no back end but 'native' and 'xformers', got {backend!r}")
