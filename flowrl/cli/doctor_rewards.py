"""The doctor's rows about rewards: each is asked for pictures whose order is known."""

from __future__ import annotations

import time
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rewards.self_test import SelfTestReport

__all__ = ["named_rewards", "reward_problems"]


def reward_problems(config: str | None, overrides: Sequence[str]) -> list[str]:
    """Self-test rewards, load their weights for it, and print how each fares; return what is wrong.

    Args:
        config: A YAML file, a bundled config's name, or a run folder, of anything that has rewards; None tests those that need no weights.
        overrides: ``key=value`` each.
    """
    from pathlib import Path

    from flowrl.cli.console import row, say
    from flowrl.config import instantiate, load_config, validate
    from flowrl.config.user_code import user_targets
    from flowrl.errors import ConfigError

    say()
    if config is None:
        say(row("rewards", "those that need no weights; name a config to test its own"))
        return [problem for name, reward in _without_weights() for problem in _tested(name, reward)]
    inside = Path(config) / "config.yaml"
    try:
        tree = load_config(inside if inside.is_file() else config, overrides)
    except ConfigError:  # the doctor's own rows about the config say what is wrong with it
        tree = {}
    if not tree or validate(tree):
        say(row("rewards", "not tested: the config has to be mended first"))
        return []
    for target in dict.fromkeys(user_targets(tree)):
        say(row("runs code of", target))
    component = instantiate(tree)
    found = list(named_rewards(component, ""))
    if not found:
        say(row("rewards", f"{config} has none"))
    return [problem for index in range(len(found)) for problem in [*_prompts(*found[index], component), *_tested_once(found, index)]]


def named_rewards(component: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The rewards in a component, each once, with their dotted places; one that wraps others stands for them.

    Args:
        component: What a config describes.
        place: Its own place; empty for the whole config.
    """
    if callable(component) and hasattr(component, "weights"):
        yield place or "reward", component
    elif is_dataclass(component) and not isinstance(component, type):
        for field in fields(component):
            yield from named_rewards(getattr(component, field.name, None), f"{place}.{field.name}" if place else field.name)
    elif isinstance(component, list | tuple):
        for index, item in enumerate(component):
            yield from named_rewards(item, f"{place}.{index}")


def _without_weights() -> list[tuple[str, Any]]:
    import importlib.util

    import rewards

    classes: list[Any] = [rewards.Brightness, rewards.JpegCompressibility, rewards.Legibility, rewards.HeldoutLegibility, rewards.Diversity]
    reads = importlib.util.find_spec("rapidocr") is not None and importlib.util.find_spec("onnxruntime") is not None
    return [(kind.__name__, kind()) for kind in [*classes, *([rewards.OCRAccuracy] if reads else [])]]


def _prompts(name: str, reward: Any, component: Any) -> list[str]:
    """Whether a reward accepts the prompts that it will be given, as far as it can say without pictures."""
    from flowrl.rl import check_prompts
    from flowrl.train.prompts import load_prompts

    owner = getattr(component, "evaluation", None) if name.startswith("evaluation.") else component
    file = getattr(owner, "prompts", None)
    if not isinstance(file, str):
        return []
    try:
        prompts = load_prompts(file)
    except ValueError:  # the doctor's own rows say so
        return []
    try:
        check_prompts(reward, prompts)
    except ValueError as error:
        return [f"config.{name}: {error}"]
    except Exception as error:  # anybody's code
        return [f"config.{name}: check_prompts raised {type(error).__name__}: {error}"]
    return []


def _tested_once(found: Sequence[tuple[str, Any]], index: int) -> list[str]:
    from flowrl.cli.console import row, say

    name, reward = found[index]
    for earlier, other in found[:index]:
        if type(other) is type(reward) and other == reward:
            say(row(name, f"the same as {earlier}"))
            return []
    return _tested(name, reward)


def _tested(name: str, reward: Any) -> list[str]:
    import torch

    from flowrl.cli.console import row, say
    from flowrl.errors import RewardError
    from flowrl.rl import check_ready
    from rewards.self_test import run_self_tests

    start, device = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    try:
        check_ready(reward)
    except RewardError as error:
        say(row(name, "out of reach"))
        return [f"{name}: {error}"]
    except Exception as error:  # anybody's code; the other rewards are tested all the same
        say(row(name, "fails"))
        return [f"{name}: its check() raised {type(error).__name__}: {error}"]
    reports = run_self_tests(reward, device=device)
    say(row(name, f"{len(reports)} tested on {device} in {time.perf_counter() - start:.1f} s"))
    for report in reports:
        say(row(f"  {report.reward}", _told(report)))
    return [f"{name}: {problem}" for report in reports for problem in report.problems]


def _told(report: SelfTestReport) -> str:
    if not report.passed:
        return "fails"
    if not report.cases:
        return f"not tested: it has no known_answers(), and the photographs and their prompts gave {report.remark or 'no scores'}"
    cases = ", ".join(f"{case.name} {case.held} of {case.pairs}" for case in report.cases)
    return f"passes: {cases}"
