import importlib.util
import json

import numpy as np
import pytest

from flowrl.config import instantiate
from robot.demonstrations import Demonstrations, DemonstrationSource, Episode, RobomimicHDF5, write_hdf5
from robot.types import ActionSpec

h5py = pytest.importorskip("h5py")

SPEC = ActionSpec(names=("x", "y", "gripper"), control_rate_hz=20, rotation="delta")
ENV = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}


def episode(steps, seed, success=True):
    rng = np.random.default_rng(seed)
    return Episode(
        observations={"object": rng.normal(size=(steps, 4)), "camera": rng.integers(0, 255, (steps, 8, 8, 3), dtype=np.uint8)},
        actions=rng.normal(size=(steps, 3)),
        rewards=np.arange(steps) == steps - 1,
        dones=np.arange(steps) == steps - 1,
        success=success,
        seed=seed,
        states=rng.normal(size=(steps, 6)),
        last={"object": rng.normal(size=4), "camera": rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)},
    )


@pytest.fixture
def demonstrations():
    return Demonstrations(episodes=[episode(3 + seed % 4, seed, seed != 2) for seed in range(12)], action=SPEC, env=ENV)


@pytest.fixture
def file(tmp_path, demonstrations):
    write_hdf5(tmp_path / "demos" / "lift.hdf5", demonstrations)
    return tmp_path / "demos" / "lift.hdf5"


def test_what_is_written_is_read_back(file, demonstrations):
    read = RobomimicHDF5(path=file).load()
    assert read.sha256() == demonstrations.sha256()
    assert (read.action, read.env) == (SPEC, ENV)
    for one, other in zip(read.episodes, demonstrations.episodes, strict=True):
        assert (one.seed, one.success) == (other.seed, other.success)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.dones, other.dones)
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.last["camera"], other.last["camera"])


def test_the_layout_is_robomimics(file, demonstrations):
    with h5py.File(file) as opened:
        assert opened["data"].attrs["total"] == sum(len(one) for one in demonstrations.episodes)
        assert json.loads(opened["data"].attrs["env_args"]) == ENV
        demo = opened["data/demo_10"]
        assert demo.attrs["num_samples"] == len(demonstrations.episodes[10])
        assert set(demo) == {"actions", "rewards", "dones", "states", "obs", "next_obs"}
        np.testing.assert_array_equal(demo["next_obs/object"][:-1], demo["obs/object"][1:])
        masks = {key: {name.decode() for name in opened[f"mask/{key}"]} for key in opened["mask"]}
        assert {key: len(names) for key, names in masks.items()} == {"train": 11, "valid": 1}
        assert masks["train"] | masks["valid"] == set(opened["data"])


def test_sensors_masks_and_a_limit_choose_what_is_read(file, demonstrations):
    assert RobomimicHDF5(path=file, sensors=("object",)).load().sensors == ("object",)
    assert len(RobomimicHDF5(path=file, filter_key="valid").load()) == 1
    seeds = [one.seed for one in RobomimicHDF5(path=file, limit=11).load().episodes]
    assert seeds == list(range(11))  # demo_10 comes after demo_9


def foreign(path, steps=4, **env):
    """As robomimic's own tools write it: no names, 64-bit numbers, a flat feature."""
    with h5py.File(path, "w") as made:
        data = made.create_group("data")
        data.attrs["env_args"] = json.dumps(env or ENV)
        for index in range(2):
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = steps
            demo["actions"], demo["dones"] = np.zeros((steps, 3)), np.zeros(steps, int)
            demo["rewards"] = np.array([0.0] * (steps - 1) + [1.0 - index])
            demo["obs/object"], demo["obs/flat"] = np.zeros((steps, 5)), np.zeros(steps)
    return path


def test_a_file_without_names_needs_them_and_takes_the_rate_from_the_environment(tmp_path):
    path = foreign(tmp_path / "ph.hdf5")
    with pytest.raises(ValueError, match="what its 3 action dimensions are; give action_names"):
        RobomimicHDF5(path=path).load()
    read = RobomimicHDF5(path=path, action_names=("x", "y", "gripper")).load()
    assert read.action == SPEC
    assert [one.success for one in read.episodes] == [True, False]
    assert read.episodes[0].observations["flat"].shape == (4, 1)
    assert read.episodes[0].last is None


def test_a_file_without_a_rate_needs_one(tmp_path):
    path = foreign(tmp_path / "ph.hdf5", env_name="thing")
    with pytest.raises(ValueError, match="give control_rate_hz"):
        RobomimicHDF5(path=path, action_names=("x", "y", "z")).load()
    assert RobomimicHDF5(path=path, action_names=("x", "y", "z"), control_rate_hz=5).load().action.rotation == "none"


def delete(*keys):
    def damage(opened):
        for key in keys:
            del opened[key]

    return damage


def shorten(opened):
    del opened["data/demo_1/rewards"]
    opened["data/demo_1/rewards"] = np.zeros(2)


def list_a_ghost(opened):
    del opened["mask/train"]
    opened["mask/train"] = np.array(["demo_99"], dtype="S")


@pytest.mark.parametrize(
    ("damage", "fields", "message"),
    [
        (delete("data"), {}, "has no 'data'.*robomimic's layout"),
        (delete(*(f"data/demo_{index}" for index in range(12))), {}, "holds no demonstrations"),
        (delete("data/demo_1/actions"), {}, "data/demo_1 has no 'actions'"),
        (delete("data/demo_1/obs"), {}, "data/demo_1 has no 'obs'"),
        (delete("data/demo_1/obs/camera"), {}, "demo_1: .*has no 'camera'|episode 1 shows"),
        (lambda opened: None, {"sensors": ("objekt",)}, "has no 'objekt'; did you mean 'object'"),
        (lambda opened: None, {"filter_key": "test"}, "no mask 'test'; allowed: train, valid"),
        (shorten, {}, r"data/demo_1: an episode of 4 actions needs as many .* rewards 2"),
        (list_a_ghost, {"filter_key": "train"}, "lists demo_99"),
        (lambda opened: None, {"action_names": ("x", "y")}, "actions of 3 dimensions, but the action has 2"),
    ],
)
def test_a_file_that_lacks_something_says_what(file, damage, fields, message):
    with h5py.File(file, "a") as opened:
        damage(opened)
    with pytest.raises(ValueError, match=message):
        RobomimicHDF5(path=file, **fields).load()


def test_a_missing_a_truncated_and_a_foreign_file_are_told_apart_from_good_ones(tmp_path, file):
    with pytest.raises(ValueError, match=r"there is no file .*flowrl record"):
        RobomimicHDF5(path=tmp_path / "no.hdf5").load()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated, damaged or no HDF5 file"):
        RobomimicHDF5(path=file).load()
    file.write_text("actions: none")
    with pytest.raises(ValueError, match="truncated, damaged or no HDF5 file"):
        RobomimicHDF5(path=file).load()


def test_a_write_that_fails_leaves_the_old_file(file, demonstrations, monkeypatch):
    before = file.read_bytes()
    calls = []

    def fail(group, one):
        calls.append(group)
        raise RuntimeError("disk")

    monkeypatch.setattr("robot.demonstrations.hdf5.write_episode", fail)
    with pytest.raises(RuntimeError, match="disk"):
        write_hdf5(file, demonstrations)
    assert calls
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["lift.hdf5"]


@pytest.mark.parametrize(("count", "share", "valid"), [(10, 0.2, 2), (2, 0.01, 1), (1, 0.5, 0), (5, 0.0, 0), (4, 0.99, 3)])
def test_a_share_is_held_out_but_never_everything(tmp_path, count, share, valid):
    made = Demonstrations(episodes=[episode(2, seed) for seed in range(count)], action=SPEC)
    write_hdf5(tmp_path / "a.hdf5", made, validation_share=share)
    with h5py.File(tmp_path / "a.hdf5") as opened:
        assert len(opened["mask/train"]) == count - valid
        assert (len(opened["mask/valid"]) if "valid" in opened["mask"] else 0) == valid


def test_a_share_of_everything_is_refused(tmp_path, demonstrations):
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        write_hdf5(tmp_path / "a.hdf5", demonstrations, validation_share=1.0)
    assert list(tmp_path.iterdir()) == []


def test_it_builds_from_a_config_as_a_source_of_demonstrations(file):
    source = instantiate({"target": "robot.demonstrations.RobomimicHDF5", "path": str(file), "sensors": ["object"], "limit": 2})
    assert isinstance(source, DemonstrationSource)
    assert len(source.load()) == 2
    with pytest.raises(ValueError, match="limit must be >= 1"):
        RobomimicHDF5(path=file, limit=0)


@pytest.mark.skipif(importlib.util.find_spec("robomimic") is None, reason="robomimic is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cache", ["all", "low_dim", None])
def test_robomimic_itself_reads_the_file(file, demonstrations, cache):
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": ["object"], "rgb": ["camera"]}}])
    keys = {"obs_keys": ["object", "camera"], "dataset_keys": ["actions", "rewards", "dones"]}
    dataset = SequenceDataset(hdf5_path=str(file), **keys, frame_stack=2, seq_length=3, hdf5_cache_mode=cache, filter_by_attribute="train")
    assert dataset.n_demos == 11
    name = dataset.demos[4]
    one = demonstrations.episodes[int(name.removeprefix("demo_"))]
    item = dataset[dataset._demo_id_to_start_indices[name] + 1]
    np.testing.assert_allclose(item["actions"][:3], one.actions[0:3], rtol=1e-6)
    np.testing.assert_allclose(item["obs"]["object"][:2], one.observations["object"][0:2], rtol=1e-6)
    np.testing.assert_array_equal(item["obs"]["camera"][:2], one.observations["camera"][0:2])
    np.testing.assert_allclose(item["next_obs"]["object"][0], one.observations["object"][1], rtol=1e-6)
