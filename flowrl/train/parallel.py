"""What accelerate leaves to the program: which strategies fit, what they must be told, and weights that are sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from flowrl.errors import ConfigError, require
from flowrl.models import FirstBlockCache
from flowrl.rl import needs_reference
from flowrl.train.optimizer import AdamW8bit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerate import Accelerator
    from torch import Tensor, nn

    from flowrl.rl import Objective
    from flowrl.train.trainer import RLTrainer

__all__ = [
    "check_reference",
    "full_state",
    "full_tensor",
    "is_sharded",
    "local_shard",
    "reshard",
    "shard_of",
    "start_accelerator",
    "unsharded",
]

_WHOLE_PARAMETERS = 2  # the highest ZeRO stage at which every process holds all parameters
_RESTORES_OPTIMIZERS = (1, 13)  # the first accelerate that does so under FSDP 2


def start_accelerator(trainer: RLTrainer) -> Accelerator:
    """Join the processes, under whatever strategy accelerate was launched with, and check that it fits.

    Raises:
        ConfigError: If the strategy is FSDP 1 or ZeRO 3, accelerate or the optimiser does not fit FSDP 2, or weights are packed.
        MissingExtraError: If a tracker is not installed.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration

    if "wandb" in trainer.trackers:
        require("wandb", "wandb")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else accelerate ignores torchrun there, and every process trains alone
        mixed_precision=trainer.mixed_precision,
        log_with=list(trainer.trackers) or None,
        project_config=ProjectConfiguration(project_dir=trainer.run_dir, logging_dir=str(trainer.folder / "tensorboard")),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=trainer.find_unused_parameters)],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        _check_packed(trainer)
    if accelerator.distributed_type == DistributedType.FSDP:
        _settle_fsdp(accelerator, trainer)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        _settle_deepspeed(accelerator, trainer)
    return accelerator


def _check_packed(trainer: RLTrainer) -> None:
    if (form := getattr(trainer.model, "quantise", None)) is not None:
        raise ConfigError(
            f"model.quantise={form!r} packs weights, which FSDP and DeepSpeed would cut or cast; leave it out, or use one GPU or DDP"
        )


def _settle_fsdp(accelerator: Accelerator, trainer: RLTrainer) -> None:
    import accelerate

    if not accelerator.is_fsdp2:
        raise ConfigError(
            "FSDP 1 flattens parameters, which LoRA and the weight average cannot use; set fsdp_version: 2 in accelerate's file"
        )
    if tuple(int(part) for part in accelerate.__version__.split(".")[:2]) < _RESTORES_OPTIMIZERS:
        raise ConfigError(
            f"accelerate {accelerate.__version__} does not restore optimisers under FSDP 2; install a newer one: "
            "pip install 'accelerate>=1.13'"
        )
    if isinstance(getattr(trainer.model, "tail_cache", None), FirstBlockCache):
        raise ConfigError(FirstBlockCache.not_sharded)
    if isinstance(trainer.optimizer, AdamW8bit):
        raise ConfigError(
            "AdamW8bit does not know sharded weights; take flowrl.train.AdamW under FSDP 2, whose moments are shared out anyway"
        )
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True  # else gradients of micro-batches add up unsharded


def _settle_deepspeed(accelerator: Accelerator, trainer: RLTrainer) -> None:
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage > _WHOLE_PARAMETERS:
        raise ConfigError(f"ZeRO {plugin.zero_stage} shards parameters, which rollouts need whole; set zero_stage: 2, or use FSDP 2")
    # accelerate would take the first from a data loader, and the second from its own file.
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = trainer.update.micro_batch
    plugin.deepspeed_config["gradient_clipping"] = trainer.update.max_grad_norm


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether each process holds a part of the parameters only (FSDP 2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in parameters)


def full_state(module: nn.Module) -> dict[str, Tensor] | None:
    """The complete state dict, on the CPU, of a module that is sharded (FSDP 2) or lies in one buffer (DeepSpeed); None for any other.

    All processes must call it; where the module is sharded, only the first gets tensors.
    """
    reshard(module)
    if is_sharded(module.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return cast("dict[str, Tensor]", get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))
    if any(parameter.untyped_storage().nbytes() > parameter.nbytes for parameter in module.parameters()):
        return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}
    return None


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; all processes must call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter, in the same memory, without a graph."""
    from torch.distributed.tensor import DTensor

    parameter = parameter.detach()
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def unsharded(local: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each process holds a part, sharded like ``like``; all processes must call it."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return local
    return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, in memory of its own, sharded like ``like``; all processes must call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device, copy=True)
    return distribute_tensor(tensor, like.device_mesh, like.placements).to_local() if isinstance(like, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Forget gathered copies of parameters: FSDP 2 keeps those of its root after a forward pass, and would not see new values."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def check_reference(accelerator: Accelerator, module: nn.Module, objective: Objective) -> None:
    """Refuse a KL to the reference where the reference would be a second network that is sharded.

    Raises:
        ConfigError: If all weights are trained under FSDP 2 with ``kl_weight`` > 0.
    """
    swaps = needs_reference(objective) and all(parameter.requires_grad for parameter in module.parameters())
    if swaps and accelerator.is_fsdp2:
        raise ConfigError("a KL to the reference model cannot swap all weights of a sharded network; train a LoRA, or set kl_weight to 0")
