"""Where LeRobot can be imported: its modules, without the ones of policies whose dependencies are missing."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

_OTHERS = ("groot", "wall_x", "xvla", "sarm")


def lerobot_module(name):
    """A module of LeRobot, or a skip that says why. The package of policies imports every policy: its ``__init__`` is left out."""
    if (found := importlib.util.find_spec("lerobot")) is None:
        pytest.skip("lerobot is not on the path")
    folder = Path(found.submodule_search_locations[0]) / "policies"
    for part in ("", *_OTHERS):
        package = ModuleType(f"lerobot.policies.{part}".rstrip("."))
        package.__path__ = [str(folder / part)]
        sys.modules.setdefault(package.__name__, package)
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}")


def random_diffusion_policy(kind="DDPM", *, high=14.0, steps=10):
    """LeRobot's ``DiffusionPolicy`` with random weights, its config and its two pipelines."""
    modeling, types = lerobot_module("lerobot.policies.diffusion.modeling_diffusion"), lerobot_module("lerobot.configs.types")
    processors = lerobot_module("lerobot.policies.diffusion.processor_diffusion")
    feature, kinds = types.PolicyFeature, types.FeatureType
    config = sys.modules["lerobot.policies.diffusion.configuration_diffusion"].DiffusionConfig(
        input_features={
            "observation.state": feature(type=kinds.STATE, shape=(3,)),
            "observation.environment_state": feature(type=kinds.ENV, shape=(2,)),
        },
        output_features={"action": feature(type=kinds.ACTION, shape=(2,))},
        down_dims=(16, 32),
        n_groups=4,
        horizon=8,
        n_action_steps=4,
        noise_scheduler_type=kind,
        num_inference_steps=steps,
        device="cpu",
    )
    stats = {name: {"min": -2 * torch.ones(size), "max": 2 * torch.ones(size)} for name, size in _SIZES.items()}
    stats["action"] = {"min": torch.tensor([-1.0, 10.0]), "max": torch.tensor([high - 11, high])}
    before, after = processors.make_diffusion_pre_post_processors(config, stats)
    return modeling.DiffusionPolicy(config).eval(), config, before, after


_SIZES = {"observation.state": 3, "observation.environment_state": 2}
