"""The plan of a training run as ``flowrl doctor`` prints it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.train.plan import Advice, MemoryPlan, Strategy, Subject
    from flowrl.train.trainer import RLTrainer

__all__ = ["bytes_of", "launched_with", "show_plan"]

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}
TERA = 1e12


def bytes_of(text: str) -> int:
    """Read an amount of memory.

    >>> bytes_of("24GB")
    24000000000

    Raises:
        ValueError: If it is no amount.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB)\s*", text.upper())
    if match is None:
        raise ValueError(f"must be an amount such as 24GB (1e9 bytes each, as cards are sold) or 22.5GiB, with its unit; got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def launched_with(config: str) -> str | None:
    """The accelerate config file that the command in a config's leading comment names; a row says so, and None is where there is none.

    Args:
        config: What `flowrl.config.config_path` takes.
    """
    from pathlib import Path

    from flowrl.cli.console import row, say
    from flowrl.config import config_path

    path = config_path(config)
    match = re.search(r"^# Command: .*--config_file (\S+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if match is None:
        return None
    beside = path.parent.parent / "accelerate" / Path(match[1]).name  # where the bundled ones are, from whichever folder this is called
    found = next((file for file in (Path(match[1]), beside) if file.is_file()), None)
    if found is not None:
        say(row("launched with", f"{match[1]}, as the config's own command says"))
    return str(found) if found else None


def show_plan(trainer: RLTrainer, *, accelerate: str | None, memory: int | None, first: str | None = None) -> list[str]:
    """Print memory by part and strategy, work and disk; return what stands in the way.

    Args:
        trainer: The configuration.
        accelerate: Path of an accelerate config file; None shows the usual strategies.
        memory: Bytes of one GPU; None does not judge.
        first: Path of the accelerate config file that the config itself names: shown before the usual strategies.
    """
    from flowrl.cli.console import row, say
    from flowrl.cli.plan_rewards import reward_networks
    from flowrl.errors import CheckpointError, ConfigError
    from flowrl.train.plan import Subject, read_strategy

    try:
        strategies = [read_strategy(accelerate)] if accelerate else _strategies(first)
        subject = Subject.of(trainer, reward_networks(trainer))
        if accelerate:
            strategies[0].check(trainer.model)
            trainer.check_groups(strategies[0].processes)
    except (CheckpointError, ConfigError) as error:
        return [str(error)]
    except ValueError as error:
        say(row("memory", str(error)))
        return []
    _network(subject)
    say("planning … (passes through the network are tried without data: up to a minute)")
    sys.stdout.flush()
    _work(subject)
    plans = _plans(subject, strategies)
    if not plans:
        return []
    _table(plans)
    _machine(subject, plans[0][0])
    return [] if memory is None else _fit(subject, plans, memory)


def _strategies(first: str | None) -> list[Strategy]:
    """The usual ones, after the one that a config says it is launched with."""
    from flowrl.train.plan import read_strategy, usual_strategies

    named = [read_strategy(first)] if first else []
    return [*named, *(strategy for strategy in usual_strategies() if strategy not in named)]


def _network(subject: Subject) -> None:
    from flowrl.cli.console import row, say
    from flowrl.train.figures import figure

    frozen, trained = subject.network.part.parameters, subject.sizes.trained
    lora = subject.network.lora
    packed = "" if subject.network.quantise is None else f", on frozen weights in {subject.network.quantise}"
    how = "all of it" if lora is None else f"a LoRA of rank {lora.rank}{packed}"
    say(row("network", f"{subject.network.part.kind}, {figure(frozen)} parameters, known from {subject.architecture.origin}"))
    say(row("trained", f"{figure(trained)} parameters: {how}"))
    frames, height, width = subject.geometry.pixels
    video = f"{frames} frames of " if frames > 1 else ""
    say(row("pictures", f"{video}{width} × {height}, latents {' × '.join(map(str, subject.geometry.latent))}"))


def _work(subject: Subject) -> None:
    from flowrl.cli.console import row, say
    from flowrl.train.figures import figure
    from flowrl.train.plan import update_work

    try:
        work = update_work(subject)
    except ValueError as error:
        say(row("work", str(error)))
        return
    shares = {"rollout": work.rollout, "learning": work.update, "decoding": work.decoding, "rewards": work.rewards}
    say(row("work", f"{figure(work.total / TERA)} TFLOP an update: " + ", ".join(f"{n} {x / work.total:.0%}" for n, x in shares.items())))


def _plans(subject: Subject, strategies: Sequence[Strategy]) -> list[tuple[Strategy, MemoryPlan]]:
    """Those strategies among whose processes the groups can be shared; the rows about groups have said of the others why not."""
    from flowrl.cli.console import row, say
    from flowrl.errors import ConfigError
    from flowrl.train.plan import memory_plan

    plans = []
    for strategy in strategies:
        if subject.trainer.prompts_per_update % strategy.processes:
            continue
        try:
            plans.append((strategy, memory_plan(subject, strategy)))
        except ConfigError as error:
            say(row("memory", f"{strategy.title}: {error}"))
        except ValueError as error:
            say(row("memory", str(error)))
            break
    return plans


def _table(plans: Sequence[tuple[Strategy, MemoryPlan]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flowrl.cli.console import show
    from flowrl.train.figures import memory

    table = Table(title="memory of one GPU", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("part")
    for strategy, _ in plans:
        table.add_column(strategy.title, justify="right")
    held = [{part.name: part.size for part in plan.held} for _, plan in plans]
    for name in dict.fromkeys(name for column in held for name in column):
        table.add_row(name, *(memory(column[name]) if column.get(name) else "–" for column in held))
    table.add_section()
    for index, phase in enumerate(plans[0][1].phases):
        cells = [plan.phases[index] for _, plan in plans]
        if any(cell.size for cell in cells):
            marks = ["*" if cell.name == plan.largest_phase.name else "" for cell, (_, plan) in zip(cells, plans, strict=True)]
            shown = (f"{memory(cell.size) if cell.size else '–'}{mark}" for cell, mark in zip(cells, marks, strict=True))
            table.add_row(f"+ {phase.name}", *shown)
    table.add_row("+ reserve", *(memory(plan.reserve) for _, plan in plans))
    table.add_section()
    table.add_row("at most (with *)", *(memory(plan.peak) for _, plan in plans), style="bold")
    show(table)


def _machine(subject: Subject, strategy: Strategy) -> None:
    """Disk, and the main memory that loading takes."""
    from flowrl.cli.console import row, say
    from flowrl.train.figures import memory
    from flowrl.train.plan import checkpoint_parts, embedding_bytes

    parts = checkpoint_parts(subject, strategy)
    each, keep = sum(part.size for part in parts), subject.trainer.keep_checkpoints
    say(row("each checkpoint", f"{memory(each)}: " + ", ".join(f"{part.name} {memory(part.size)}" for part in parts)))
    say(row("disk of the run", f"{memory((keep + 1) * each)}: {keep} checkpoints are kept, and one more is there while it is written"))
    say(row("embeddings", f"{memory(embedding_bytes(subject))} a prompt, in main memory or in model.embedding_cache"))
    loaded = subject.loaded()
    say(row("loading", f"{memory(loaded)} of main memory in every process, {memory(loaded * strategy.per_machine)} on one machine"))


def _fit(subject: Subject, plans: Sequence[tuple[Strategy, MemoryPlan]], limit: int) -> list[str]:
    """Say what fits, and what to change where it does not."""
    from flowrl.cli.console import row, say
    from flowrl.train.figures import memory

    for strategy, plan in plans:
        fits = plan.peak <= limit
        spare = f"{memory(limit - plan.peak)} to spare of {memory(limit)}" if fits else f"{memory(plan.peak)} of {memory(limit)}"
        say(row("fits" if fits else "does not fit", f"{strategy.title}: {spare}"))
    if any(plan.peak <= limit for _, plan in plans):
        return []
    strategy, plan = plans[0]
    return [_remedy(subject, strategy, plan, limit)]


def _remedy(subject: Subject, strategy: Strategy, plan: MemoryPlan, limit: int) -> str:
    from flowrl.cli.console import row, say
    from flowrl.cli.doctor_remedies import too_large
    from flowrl.train.figures import memory
    from flowrl.train.plan import advise

    alone = too_large(subject, strategy, limit)
    if alone:
        say(row("too large", alone))
    advice = advise(subject, strategy, limit)
    say(row("to change", strategy.title))
    for change in advice.changes:
        say(row("", f"{change.override}  ({change.price})"))
    overrides = " ".join(change.override for change in advice.changes)
    if advice.fits:
        say(row("", f"then {memory(advice.plan.peak)}: {overrides}"))
        return f"memory: {strategy.title} needs {memory(plan.peak)}; with these it fits into {memory(limit)}: {overrides}"
    say(row("", f"then {memory(advice.plan.peak)}, which is still too much" if advice.changes else "none of the options saves enough"))
    return _what_is_left(subject, advice, strategy, plan, limit)


def _what_is_left(subject: Subject, advice: Advice, strategy: Strategy, plan: MemoryPlan, limit: int) -> str:
    from flowrl.cli.console import row, say
    from flowrl.cli.doctor_remedies import fitting_presets, remedies, too_large
    from flowrl.train.figures import memory

    found = remedies(subject, advice, strategy, limit)
    for index, text in enumerate(found):
        say(row("" if index else "what is left", text))
    presets = fitting_presets(subject, limit)
    for index, name in enumerate(presets):
        say(row("" if index else "presets that fit", name))
    alone = too_large(subject, strategy, limit)
    still = f", and {memory(advice.plan.peak)} with all that was said to change" if advice.changes else ""
    left = f"; what is left: {'; '.join(found)}" if found else ""
    named = f"; presets for such a card: {', '.join(presets)}" if presets else ""
    needs = f"{strategy.title} needs {memory(plan.peak)}{still}; {memory(limit)} is too little"
    return f"memory: {f'{alone}; ' if alone else ''}{needs}{left}{named}"
