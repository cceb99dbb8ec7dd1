"""``world_action.safetensors``: whole, self-contained, and refused where it is not what it says."""

import pytest
import torch
from safetensors.torch import load_file
from wams import NETWORK

from flowrl.errors import CheckpointError, ConfigError
from robot.learning import StateEncoder
from robot.learning.encoders import SensorStats
from robot.normalise import NormStats
from robot.types import ActionSpec, Observation
from robot.world import ConstantSchedule, MaskedSchedule, SharedSchedule, StateFrames, WorldActionFile, WorldRecipe, save_world_action
from robot.world.checkpoint import WORLD_ACTION_MODELS

STATS = {
    "state": SensorStats(shape=(3,), low=torch.tensor([0.0, -1.0, 2.0]), high=torch.tensor([1.0, 1.0, 6.0])),
    "goal": SensorStats(shape=(2,), low=torch.tensor([0.0, 0.0]), high=torch.tensor([2.0, 4.0])),
}
SEEN = Observation({"state": torch.linspace(-1, 5, 12).reshape(2, 2, 3), "goal": torch.linspace(0, 2, 8).reshape(2, 2, 2)})
TRAINING = {"data": {"sha256": "abc"}, "config": {}, "steps": 5}


def recipe(**fields):
    defaults = {
        "latents": StateFrames(vectors=("state",), tokens=2),
        "network": NETWORK,
        "encoder": StateEncoder(sensors=("goal",), history=2),
        "sensors": tuple((name, stats.shape) for name, stats in STATS.items()),
        "action": ActionSpec(names=("x", "y"), control_rate_hz=10),
        "frames": 3,
        "stride": 2,
        "observed": 2,
        "horizon": 4,
        "execute": 2,
        "schedule": ConstantSchedule(multipliers=(0.5, 1.0, 1.5), steps=3),
        "clip": None,
        "name": "dreams",
    }
    return WorldRecipe(**(defaults | fields))


@pytest.fixture
def saved(tmp_path):
    made = recipe()
    torch.manual_seed(0)
    modules = made.build(STATS)
    for module in modules.parts.values():
        module.requires_grad_(requires_grad=False)  # as loaded: torch's kernels differ in the last bit
    stats = NormStats(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    save_world_action(tmp_path / "world_action.safetensors", made, modules, stats, TRAINING)
    return tmp_path, made.model(modules, stats)


def acted(model):
    return model.act(SEEN, torch.Generator().manual_seed(1)).values


def test_a_model_comes_back_whole(saved):
    folder, model = saved
    loaded = WorldActionFile(path=str(folder)).load()
    torch.testing.assert_close(acted(loaded), acted(model), rtol=0, atol=0)
    for name in ("action", "horizon", "execute", "stride", "sensors", "history", "tasks", "clip", "name"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert (loaded.history, loaded.sensors) == (2, ("state", "goal"))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert WORLD_ACTION_MODELS.read_recipe(folder) == recipe()
    assert WORLD_ACTION_MODELS.read_training(folder) == TRAINING


def test_the_file_holds_the_normalisers_and_loading_draws_no_random_numbers(saved):
    folder, model = saved
    tensors = load_file(folder / "world_action.safetensors")
    torch.testing.assert_close(tensors["codec.offset"], torch.tensor([0.5, 0.0, 4.0]))
    torch.testing.assert_close(tensors["action.scale"], torch.tensor([3.0, 0.5]))
    before = torch.get_rng_state()
    WorldActionFile(path=str(folder)).load()
    assert torch.equal(torch.get_rng_state(), before)
    frames = torch.randn(1, 1, 3)
    torch.testing.assert_close(model.codec.decode(model.codec.encode({"state": frames}))["state"], frames)


def test_another_schedule_acts_without_another_file(saved):
    folder, model = saved
    masked = WorldActionFile(path=str(folder), schedule=MaskedSchedule(steps=3)).load()
    torch.testing.assert_close(acted(masked), acted(model.with_schedule(MaskedSchedule(steps=3).build(3))))
    assert not torch.allclose(acted(masked), acted(model))


def test_what_does_not_fit_is_refused(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(ConfigError, match=r"world_action.safetensors: ConstantSchedule has 1 multipliers, but the model predicts 3 frames"):
        WorldActionFile(path=str(folder), schedule=ConstantSchedule(multipliers=(1.0,))).load()
    with pytest.raises(CheckpointError, match=r"there is no world-action model .*give a world_action.safetensors, or a folder"):
        WorldActionFile(path=str(tmp_path / "elsewhere")).load()
    with pytest.raises(ConfigError, match="cannot give execute=5"):
        recipe(execute=5)
    other, stats = recipe(frames=2, schedule=SharedSchedule()), NormStats(torch.zeros(2), torch.ones(2))
    save_world_action(tmp_path / "p", recipe(), other.build(STATS), stats)
    with pytest.raises(CheckpointError, match=r"the weights in .* do not fit the world-action model that it describes: .*size mismatch"):
        WorldActionFile(path=str(tmp_path / "p")).load()


def test_a_policy_is_no_world_action_model(tmp_path):
    from robot.learning import ActionMLP, Flow, Recipe, save_policy

    plain = Recipe(
        process=Flow(),
        encoder=StateEncoder(sensors=("state",)),
        network=ActionMLP(width=8, layers=1, time_width=8),
        sensors={"state": (3,)},
        action=ActionSpec(names=("x",), control_rate_hz=10),
        horizon=2,
        first=0,
        execute=1,
    )
    save_policy(tmp_path / "policy.safetensors", plain, *plain.build(STATS), NormStats(torch.zeros(1), torch.ones(1)))
    with pytest.raises(CheckpointError, match="holds no world-action model of flowrl"):
        WorldActionFile(path=str(tmp_path / "policy.safetensors")).load()
