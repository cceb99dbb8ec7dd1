"""What is left when no option of a run makes it fit: only what applies to it, with what each would save."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrl.train.plan import Advice, MemoryPlan, Strategy, Subject

__all__ = ["fitting_presets", "remedies", "too_large"]

WORTH = 0.99  # a remedy is named if it leaves at most this part of the peak
GPUS = 8
STEP = 64  # pixels; every model takes multiples of it


def too_large(subject: Subject, strategy: Strategy, limit: int) -> str | None:
    """Say so if the network's weights alone are larger than the card; None if they are not."""
    from flowrl.train.figures import memory

    weights = strategy.weights(subject.sizes)
    if weights <= limit:
        return None
    what = "the network alone takes" if subject.network.lora is None else "the network and its LoRA alone take"
    return f"{what} {memory(weights)}, more than the {memory(limit)} of the card"


def remedies(subject: Subject, advice: Advice, strategy: Strategy, limit: int) -> list[str]:
    """What else would save memory, each with what it saves once all of the advice is followed.

    Args:
        subject: The run as it is configured.
        advice: What was found to change, which is too little.
        strategy: How processes share the run.
        limit: Bytes of one device.
    """
    from flowrl.train.figures import memory

    found = []
    for text, plan in _tried(subject, advice.subject, strategy):
        if plan.peak <= WORTH * advice.plan.peak:
            then = f"then it fits, {memory(plan.peak)}" if plan.peak <= limit else f"then {memory(plan.peak)}"
            found.append(f"{text}: saves {memory(advice.plan.peak - plan.peak)}, {then}")
    return found


def fitting_presets(subject: Subject, limit: int) -> list[str]:
    """Bundled presets whose name says that they fit such a card (``…_24gb``); those of the same model, if there are any."""
    from flowrl.config import bundled_configs, load_config

    sized = {name: int(match[1]) for name in bundled_configs() if (match := re.search(r"_(\d+)gb$", name))}
    names = sorted((name for name, size in sized.items() if size * 10**9 <= limit), key=lambda name: (-sized[name], name))
    same = [name for name in names if load_config(name)["model"].get("path") == subject.source.path]
    return same or names


def _tried(subject: Subject, changed: Subject, strategy: Strategy) -> Iterator[tuple[str, MemoryPlan]]:
    from flowrl.errors import ConfigError
    from flowrl.train.plan import memory_plan

    for text, other, shared in (*_options(changed, strategy), *_more_gpus(subject, strategy)):
        try:
            yield text, memory_plan(other, shared)
        except (ConfigError, ValueError):  # a size or an adapter that this network does not take is no remedy
            continue


def _options(subject: Subject, strategy: Strategy) -> Iterator[tuple[str, Subject, Strategy]]:
    if subject.rewards:
        names = ", ".join(network.name for network in subject.rewards)
        text = f"{names} on another GPU or machine (flowrl serve-reward there, rewards.RemoteReward in the config)"
        yield text, replace(subject, rewards=()), strategy
    if subject.source.lora is None:
        yield from _with_lora(subject, strategy)
    if type(subject.trainer.optimizer).__name__ == "AdamW" and strategy.name != "FSDP 2":
        yield "moments of 8 bits (optimizer.target=flowrl.train.AdamW8bit)", _with_8_bits(subject), strategy
    yield from _smaller(subject, strategy)


def _with_lora(subject: Subject, strategy: Strategy) -> Iterator[tuple[str, Subject, Strategy]]:
    from flowrl.models import LoRA

    text = "a LoRA instead of all weights ('model.lora={target: flowrl.models.LoRA, rank: 64, alpha: 128}')"
    yield text, _with(subject, lora=LoRA(rank=64, alpha=128.0)), strategy
    if strategy.packs and subject.source.compile is None:
        yield f"{text} on frozen weights of 4 bits (model.quantise=nf4)", _with(subject, lora=LoRA(rank=64), quantise="nf4"), strategy


def _with_8_bits(subject: Subject) -> Subject:
    from flowrl.train import AdamW8bit

    old = subject.trainer.optimizer
    new = AdamW8bit(**{field.name: getattr(old, field.name) for field in fields(old)})
    return replace(subject, trainer=replace(subject.trainer, optimizer=new))


def _smaller(subject: Subject, strategy: Strategy) -> Iterator[tuple[str, Subject, Strategy]]:
    height, width = (max(STEP, side // 2 // STEP * STEP) for side in subject.geometry.pixels[1:])
    if height < subject.geometry.pixels[1]:
        try:
            yield f"smaller pictures (model.height={height} model.width={width})", _with(subject, height=height, width=width), strategy
        except ValueError:  # the model has one size
            return


def _more_gpus(subject: Subject, strategy: Strategy) -> Iterator[tuple[str, Subject, Strategy]]:
    """The network shared by eight GPUs, where it is whole on each; packed weights cannot be shared."""
    from flowrl.train.plan import FSDP2

    if strategy.name == "FSDP 2" or subject.source.quantise is not None:
        return
    groups = -(-subject.trainer.prompts_per_update // GPUS) * GPUS
    more = "" if groups == subject.trainer.prompts_per_update else f" and prompts_per_update={groups}"
    shared = replace(subject, trainer=replace(subject.trainer, prompts_per_update=groups))
    text = f"{GPUS} GPUs that share the network (configs/accelerate/fsdp2_8gpu.yaml{more}) instead of these changes"
    yield text, shared, FSDP2(processes=GPUS, per_machine=GPUS)


def _with(subject: Subject, **values: Any) -> Subject:
    """Another model configuration, looked up anew."""
    trainer = replace(subject.trainer, model=replace(subject.source, **values))
    return type(subject).of(trainer, subject.rewards, cuda=subject.cuda)
