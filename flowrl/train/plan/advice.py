"""What to change so that a run fits, found by planning it again with one change after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowrl.train.plan.memory import MemoryPlan, Subject, least_peak, memory_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrl.train.plan.strategies import Strategy
    from flowrl.train.trainer import RLTrainer

__all__ = ["Advice", "Change", "advise"]

WORTH = 0.99  # a change is proposed if it leaves at most this part of the peak
MOST_CHANGES = 16
TILE = 512  # pixels


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field of a config.

    Attributes:
        place: Dotted.
        value: New.
        price: What it costs.
    """

    place: str
    value: Any
    price: str

    @property
    def override(self) -> str:
        """As the command line takes it."""
        value = {True: "true", None: "null"}.get(self.value, self.value) if isinstance(self.value, bool | None) else self.value
        return f"{self.place}={value}"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What was found.

    Attributes:
        changes: In the order in which they were made.
        subject: With all of them.
        plan: With all of them.
        fits: Whether that is within the limit.
    """

    changes: Sequence[Change]
    subject: Subject
    plan: MemoryPlan
    fits: bool


def advise(subject: Subject, strategy: Strategy, limit: int) -> Advice:
    """Change what costs least, until the run fits or nothing helps any more.

    Args:
        subject: The run.
        strategy: How processes share it.
        limit: Bytes of one device.

    Raises:
        ConfigError: If the groups cannot be shared evenly.
        ValueError: If a network's pass is not known.
    """
    made: list[Change] = []
    plan = memory_plan(subject, strategy)
    while plan.peak > limit and len(made) < MOST_CHANGES:
        for change in _candidates(subject, strategy):
            changed = replace(subject, trainer=with_field(subject.trainer, change.place, change.value))
            changed = Subject.of(changed.trainer, changed.rewards, cuda=changed.cuda)
            if least_peak(changed, strategy, plan.largest_phase.name) > WORTH * plan.peak:
                continue  # the phase that decides stays as large
            smaller = memory_plan(changed, strategy)
            if smaller.peak <= WORTH * plan.peak:
                made, subject, plan = [*(old for old in made if old.place != change.place), change], changed, smaller
                break
        else:
            break
    return Advice(changes=made, subject=subject, plan=plan, fits=plan.peak <= limit)


def with_field(component: RLTrainer, place: str, value: Any) -> RLTrainer:
    """A trainer with another value at a dotted place."""
    return _with_field(component, place.split("."), value)


def _with_field(component: Any, names: Sequence[str], value: Any) -> Any:
    first, *rest = names
    return replace(component, **{first: _with_field(getattr(component, first), rest, value) if rest else value})


def _candidates(subject: Subject, strategy: Strategy) -> Iterator[Change]:
    """Changes from what costs nothing to what changes the pictures; only those that are one."""
    trainer, source = subject.trainer, subject.source
    yield from _batches(trainer)
    if source.text_encoders != "drop":
        yield Change(place="model.text_encoders", value="drop", price="all prompts are encoded before the first rollout")
    if source.dtype == "float32":
        yield Change(place="model.dtype", value="bfloat16", price="the network computes in bfloat16")
    yield from _halves(trainer, "update.micro_batch", 1, "more, smaller passes in the update")
    if not source.gradient_checkpointing:
        yield Change(place="model.gradient_checkpointing", value=True, price="the update computes a third more")
    if source.decoder != "offload":
        yield Change(place="model.decoder", value="offload", price="the decoder moves to the GPU for every batch")
    if source.decode_tile is None and max(subject.geometry.pixels[1:]) > TILE:
        yield Change(place="model.decode_tile", value=TILE, price="tiles are blended, which changes the pictures slightly")
    if source.decoder_dtype == "float32":
        yield Change(place="model.decoder_dtype", value="bfloat16", price="pictures are decoded in bfloat16")
    if trainer.ema_decay is not None:
        yield Change(place="ema_decay", value=None, price="no weight average")
    yield from _packed(source, strategy)


def _packed(source: Any, strategy: Strategy) -> Iterator[Change]:
    """Frozen weights in fewer bits, where they can be had."""
    denser = {None: "int8", "int8": "nf4"}.get(source.quantise)
    if denser and source.lora is not None and source.compile is None and strategy.packs:
        price = {"int8": "frozen weights are rounded to 8 bits", "nf4": "frozen weights are rounded to 4 bits; the extra bitsandbytes"}[
            denser
        ]
        yield Change(place="model.quantise", value=denser, price=price)


def _batches(trainer: RLTrainer) -> Iterator[Change]:
    """Sizes that change nothing but speed."""
    same = "smaller calls; the same pictures"
    if hasattr(trainer.sampler, "max_batch"):
        yield from _halves(trainer, "sampler.max_batch", 1, same, start=64)
    if trainer.evaluation is not None:
        if hasattr(trainer.evaluation.sampler, "max_batch"):
            yield from _halves(trainer, "evaluation.sampler.max_batch", 1, same, start=64)
        yield from _halves(trainer, "evaluation.batch", trainer.evaluation.images_per_prompt, same)
    yield from _halves(trainer, "reward_batch", 1, same)
    yield from _halves(trainer, "model.decode_batch", 1, same)


def _halves(trainer: RLTrainer, place: str, least: int, price: str, start: int | None = None) -> Iterator[Change]:
    """Half of what it is; where it is not set, ``start``."""
    value: Any = trainer
    for name in place.split("."):
        value = getattr(value, name)
    smaller = start if value is None else value // 2
    if smaller is not None and smaller >= least:
        yield Change(place=place, value=smaller, price=price)
