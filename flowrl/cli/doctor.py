"""Check the environment and, given a config, everything about it that can be known before a model is loaded.

Examples:
  flowrl doctor
  flowrl doctor image/digits_g2rpo sampler.group_size=24
  flowrl doctor image/sd3_5_medium_g2rpo_lora_24gb --memory 24GB
  flowrl doctor image/flux1_g2rpo_hpsv2 --accelerate configs/accelerate/fsdp2_2x8gpu.yaml --memory 141GB
  flowrl doctor --rewards image/flux1_g2rpo_hpsv2
  flowrl doctor --robots
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from flowrl.train.trainer import RLTrainer

__all__ = ["add_arguments", "run"]

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "scikit-learn")
EXTRAS = {"wandb": "wandb", "xformers": "xformers", "open_clip": "open-clip", "bitsandbytes": "bitsandbytes"}
WORLD_SIZES = (1, 2, 4, 8, 16)
WRONG = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, a bundled config's name, or a run folder")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    told = "of one GPU, such as 24GB: say whether the run fits, and what to change if not"
    parser.add_argument("--memory", metavar="SIZE", type=_amount, help=told)
    parser.add_argument("--accelerate", metavar="FILE", help="accelerate's config file that the run will be launched with")
    parser.add_argument("--rewards", action="store_true", help="load the rewards and ask each for pictures whose order is known")
    parser.add_argument("--environment", action="store_true", help="print versions, devices and extras too where a config is given")
    parser.add_argument("--robots", action="store_true", help="start every installed simulator and draw a picture, which takes seconds")


def _amount(text: str) -> int:
    """Bytes; what is no amount is refused with the other arguments."""
    import argparse

    from flowrl.cli.doctor_plan import bytes_of

    try:
        return bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    """Print what was found.

    Returns:
        0 if nothing stands in the way, 2 if something has to be mended.
    """
    from flowrl.cli.console import say
    from flowrl.cli.doctor_robots import simulators

    problems = _everything() if args.environment or not args.config else _broken()
    problems += simulators() if args.robots else []
    if args.config:
        if args.environment or args.robots:
            say()
        problems += _config(args)
    if args.rewards:
        from flowrl.cli.doctor_rewards import reward_problems

        problems += reward_problems(args.config, args.overrides)
    say()
    for problem in problems:
        say(f"problem: {problem}")
    say("Nothing stands in the way." if not problems else f"{len(problems)} to mend.")
    return WRONG if problems else 0


def _everything() -> list[str]:
    """Print versions, devices and all extras; return what is wrong."""
    from flowrl.cli.doctor_robots import robot_extras

    return [*_environment(), *robot_extras()]


def _environment() -> list[str]:
    """Print versions, devices and extras; return what is wrong."""
    from flowrl.cli.console import row, say

    say(row("python", platform.python_version()))
    for name in PACKAGES:
        say(row(name, _version(name) or "missing"))
    for line in _devices():
        say(row("device", line))
    for module, extra in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        say(row(f"extra {extra}", "installed" if there else f"absent; pip install 'flowrl-torch[{extra}]'"))
    problem = _torchvision_problem()
    say(row("torchvision", "broken" if problem else _version("torchvision") or "absent, and not needed"))
    return _broken()


def _broken() -> list[str]:
    """What is wrong with the environment, whatever is run."""
    problem = _torchvision_problem()
    return [f"{name} is missing; pip install flowrl-torch" for name in PACKAGES if _version(name) is None] + ([problem] if problem else [])


def _devices() -> list[str]:
    import torch

    from flowrl.train.figures import memory

    lines = [f"CPU, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index} {found.name}, {memory(found.total_memory)}")
    return lines


def _torchvision_problem() -> str | None:
    """An installed torchvision that does not match torch breaks diffusers, transformers and peft; one that is absent breaks nothing."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        return f"torchvision is installed but does not load ({error}); pip uninstall torchvision, or install the build that matches torch"
    return None


def _config(args: argparse.Namespace) -> list[str]:
    """Print what the config amounts to; return its errors."""
    from flowrl.cli.console import row, say
    from flowrl.cli.doctor_robots import robot_parts
    from flowrl.cli.doctor_training import gate_parts, training_parts
    from flowrl.config import instantiate, load_config, validate
    from flowrl.errors import ConfigError
    from flowrl.train import RLTrainer
    from robot.gating import GateTraining
    from robot.learning.lesson import Training

    config = args.config
    try:
        tree = load_config(_file(config), args.overrides)
    except ConfigError as error:
        return [str(error)]
    errors = validate(tree)
    if errors:
        say(row("config", f"{config} is not valid"))
        return errors
    component = instantiate(tree)
    say(row("config", f"{config} is valid: {type(component).__name__}"))
    if isinstance(component, RLTrainer):
        return _trainer(component, args)
    if isinstance(component, GateTraining):
        gate_parts(component)
    parts = robot_parts(component)
    return [*parts, *training_parts(component, WORLD_SIZES)] if isinstance(component, Training) else parts


def _trainer(trainer: RLTrainer, args: argparse.Namespace) -> list[str]:
    from flowrl.cli.console import row, say
    from flowrl.cli.doctor_extras import show_used_extras
    from flowrl.cli.doctor_plan import launched_with, show_plan
    from flowrl.train.figures import figure
    from flowrl.train.plan import rollout_cost

    show_used_extras(trainer)
    groups, size = trainer.prompts_per_update, trainer.sampler.group_size
    say(row("groups", f"{groups} of {size} per update"))
    for world in WORLD_SIZES:
        say(row(f"  on {world} process{'es' if world > 1 else ''}", _share(trainer, world)))
    cost = rollout_cost(trainer)
    say(row("each update", f"{figure(cost.network_evaluations)} network evaluations, {figure(cost.pictures)} pictures decoded and scored"))
    say(row("", f"{figure(cost.trained_states)} states with a backward pass, in micro-batches of {trainer.update.micro_batch}"))
    say(row("the run", f"{figure(cost.network_evaluations * trainer.updates)} network evaluations in {trainer.updates} updates"))
    if trainer.evaluation:
        states = trainer.evaluation.images * trainer.evaluation.sampler.evaluations()
        say(row("evaluation", f"{trainer.evaluation.images} pictures, {figure(states)} network evaluations"))
    plan = {"accelerate": args.accelerate, "memory": args.memory, "first": launched_with(_file(args.config))}
    return [*_prompts(trainer), *(_model(trainer) or show_plan(trainer, **plan))]


def _prompts(trainer: RLTrainer) -> list[str]:
    from flowrl.cli.console import row, say
    from flowrl.rl import check_prompts
    from flowrl.train.prompts import load_prompts

    try:
        prompts = load_prompts(trainer.prompts)
        say(row("prompts", f"{len(prompts)} in {trainer.prompts}"))
        check_prompts(trainer.model, prompts)
    except ValueError as error:
        return [f"config.prompts: {error}"]
    return []


def _model(trainer: RLTrainer) -> list[str]:
    """What is wrong with a pipeline's folder on this machine; a hub's is not fetched."""
    from pathlib import Path

    from flowrl.errors import CheckpointError
    from flowrl.models import DiffusersSource
    from flowrl.models.parts import resolve_path

    source = trainer.model
    try:
        if isinstance(source, DiffusersSource) and Path(resolve_path(source.path)).is_dir():
            source.check_folder()
    except CheckpointError as error:
        return [f"config.model: {error}"]
    return []


def _share(trainer: RLTrainer, world: int) -> str:
    from flowrl.errors import ConfigError

    try:
        return f"{trainer.check_groups(world)} each"
    except ConfigError as error:
        return str(error).rpartition("; ")[2]


def _file(config: str) -> str:
    """A run folder stands for the config in it."""
    from pathlib import Path

    inside = Path(config) / "config.yaml"
    return str(inside) if inside.is_file() else config


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
