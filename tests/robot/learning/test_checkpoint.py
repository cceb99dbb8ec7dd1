"""``policy.safetensors``: whole, self-contained, and refused where it is not what it says."""

import dataclasses
import json

import pytest
import torch
from demos import SPEC
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowrl.errors import CheckpointError, ConfigError
from robot.composition import Sampling
from robot.learning import (
    ActionMLP,
    ActionUNet,
    Diffusion,
    Flow,
    PolicyFile,
    Recipe,
    StateEncoder,
    load_policy,
    read_recipe,
    read_training,
    save_policy,
)
from robot.learning.encoders import SensorStats
from robot.normalise import NormStats
from robot.types import Observation

STATS = {"state": SensorStats(shape=(3,), low=torch.tensor([0.0, -1.0, 2.0]), high=torch.tensor([1.0, 1.0, 6.0]))}
TRAINING = {"data": {"sha256": "abc", "episodes": 3}, "config": {"target": "robot.learning.BehaviourCloning", "steps": 5}, "steps": 5}


def recipe(**fields):
    defaults = {
        "process": Flow(reversed_time=True),
        "encoder": StateEncoder(sensors=("state",), history=2),
        "network": ActionMLP(width=16, layers=1, time_width=8),
        "sensors": {"state": (3,)},
        "action": SPEC,
        "horizon": 4,
        "first": 1,
        "execute": 2,
        "sampling": Sampling(steps=3, clip=None),
        "name": "small",
    }
    return Recipe(**(defaults | fields))


def written(path, **fields):
    made = recipe(**fields)
    encoder, network = made.build(STATS)
    stats = NormStats(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5]))
    save_policy(path, made, encoder, network, stats, TRAINING)
    return made.policy(encoder, network, stats)


@pytest.fixture
def path(tmp_path):
    written(tmp_path / "policy.safetensors")
    return tmp_path / "policy.safetensors"


SEEN = Observation({"state": torch.linspace(-1, 5, 12).reshape(2, 2, 3)})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"process": Diffusion(predict="v"), "sampling": Sampling(steps=5, sampler="sde")},
        {"network": ActionUNet(channels=(16, 16), time_width=8)},
    ],
    ids=["flow", "diffusion by sde", "U-Net"],
)
def test_a_policy_comes_back_whole(fields, tmp_path):
    saved = written(tmp_path / "p.safetensors", **fields)
    loaded = PolicyFile(path=str(tmp_path / "p.safetensors")).load()
    one, other = (policy.act(SEEN, torch.Generator().manual_seed(1)) for policy in (saved, loaded))
    torch.testing.assert_close(other.values, one.values, rtol=0, atol=0)
    assert (other.spec, other.first) == (SPEC, 1)
    for name in ("process", "action", "horizon", "first", "execute", "sampling", "name", "sensors", "history"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert not any(parameter.requires_grad for module in (loaded.encoder, loaded.network) for parameter in module.parameters())
    assert not loaded.network.training


def test_everything_but_the_weights_can_be_read_without_them(path):
    assert read_recipe(path) == recipe()
    assert read_training(path.parent) == TRAINING


def test_saving_the_same_policy_twice_gives_the_same_bytes_and_loading_draws_no_random_numbers(path):
    policy = load_policy(path)
    stats = policy.stats
    before = torch.get_rng_state()
    load_policy(path)
    assert torch.equal(torch.get_rng_state(), before)
    save_policy(path.with_name("again.safetensors"), recipe(), policy.encoder, policy.network, stats, TRAINING)
    assert path.with_name("again.safetensors").read_bytes() == path.read_bytes()
    assert list(path.parent.glob("*.part")) == []


@pytest.mark.parametrize("size", [0, 4, 500, -1], ids=["empty", "in its length", "in its header", "one byte short"])
def test_a_truncated_file_is_refused(size, path):
    path.write_bytes(path.read_bytes()[:size])
    for read in (load_policy, read_recipe):
        with pytest.raises(CheckpointError, match=r"policy.safetensors is truncated or no safetensors file .*copy it again"):
            read(path)


def rewritten(path, change_card=lambda card: None, change_tensors=lambda tensors: None):
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["flowrl.policy"])
    tensors = load_file(path)
    change_card(card)
    change_tensors(tensors)
    save_file(tensors, path, metadata={"flowrl.policy": json.dumps(card)})


def more_steps(card):
    card["recipe"]["sampling"]["steps"] = 50


@pytest.mark.parametrize(
    ("card", "tensors"),
    [(more_steps, lambda tensors: None), (lambda card: None, lambda tensors: tensors["action.scale"].mul_(2))],
    ids=["sampler settings", "normaliser"],
)
def test_a_file_that_was_edited_is_refused(card, tensors, path):
    rewritten(path, card, tensors)
    with pytest.raises(CheckpointError, match="was altered after it was written"):
        load_policy(path)


def test_files_of_others_are_refused_with_what_reads_them(path):
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"holds no policy of flowrl; policies of other libraries are loaded through robot\.adapters"):
        load_policy(path)
    with pytest.raises(CheckpointError, match=r"there is no policy .*give a policy.safetensors, or a folder that flowrl train finished"):
        PolicyFile(path=str(path.parent / "elsewhere")).load()
    with pytest.raises(ConfigError, match="no bundled asset"):
        PolicyFile(path="assets/policies/none.safetensors").load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(version=2), "is of version 2, this flowrl reads up to 1; install a newer one"),
        (lambda card: card.pop("recipe"), r"cannot be read: KeyError\('recipe'\)"),
        (lambda card: card.update(recipe={"target": "os.system"}), "cannot be built here.*outside the packages"),
        (lambda card: card.update(recipe={"target": "os:PathLike"}), "cannot be built here.*a file of weights may not run code"),
        (lambda card: card.update(recipe={"target": "robot.learning.Flow"}), "describes a Flow, not a policy"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused(change, message, path):
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        read_recipe(path)


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path):
    made = recipe()
    encoder, _ = made.build(STATS)
    other = dataclasses.replace(made, network=ActionMLP(width=32, layers=1, time_width=8)).build(STATS)[1]
    save_policy(tmp_path / "p", made, encoder, other, NormStats(torch.zeros(2), torch.ones(2)))
    with pytest.raises(CheckpointError, match=r"the weights in .* do not fit the policy that it describes: .*size mismatch"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"sampling": Sampling(steps=50, clip=None)}, "fixes sampling.steps: 3 -> 50 was asked for. Leave it out"),
        ({"execute": 4}, "fixes execute: 2 -> 4 was asked for.*only member of a robot.Composition with a sampling of its own"),
        ({"data_sha256": "def"}, "fixes data_sha256: abc -> def"),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_refused(expected, message, path):
    with pytest.raises(ConfigError, match=message):
        PolicyFile(path=str(path), **expected).load()


def test_settings_that_agree_with_the_checkpoint_are_accepted(path):
    PolicyFile(path=str(path.parent), sampling=Sampling(steps=3, clip=None), execute=2, data_sha256="abc").load()


@pytest.mark.parametrize(("first", "execute"), [(3, 2), (0, 5), (-1, 1), (0, 0)])
def test_actions_outside_the_chunk_cannot_be_executed(first, execute):
    with pytest.raises(ConfigError, match=f"horizon=4 that begins at first={first} cannot give execute={execute} actions"):
        recipe(first=first, execute=execute)


def test_a_policy_that_cannot_be_written_leaves_the_one_that_was_there(path, monkeypatch):
    before = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"could not write the policy .*No space left on device; free some space"):
        written(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
