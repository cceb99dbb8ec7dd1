import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from flowrl.cli.main import main
from flowrl.errors import CheckpointError, MissingExtraError
from robot.demonstrations import Recording, RobomimicHDF5, record
from robot.envs import Toy

h5py = pytest.importorskip("h5py")
pytest.importorskip("gymnasium")


@dataclass(frozen=True, kw_only=True)
class Moody(Toy):
    """A toy whose expert misses even seeds, raises on some, and is interrupted on seed 3 while a file is there."""

    raises: tuple[int, ...] = ()
    interrupt: str = ""
    dies: tuple[int, ...] = ()
    missing: str = ""

    def expert(self, seed):
        return _MoodyExpert(self, seed)

    def problems(self):
        return [self.missing] if self.missing else []


class _MoodyExpert:
    def __init__(self, source, seed):
        self.source, self.seed = source, seed

    def act(self, env, frame):
        if self.seed in self.source.raises:
            raise RuntimeError("the arm fell off")
        if self.seed in self.source.dies:
            os._exit(3)
        if self.seed == 3 and Path(self.source.interrupt).is_file():
            raise KeyboardInterrupt
        return frame["target"] + (0.5 if self.seed % 2 == 0 else 0.0)


def recording(folder, **fields):
    return Recording(**{"env": Toy(), "out": folder / "toy.hdf5", "seeds": "0:6"} | fields)


def read(recorded):
    return RobomimicHDF5(path=recorded.path).load()


def lines(recorded):
    return [json.loads(text) for text in recorded.log.read_text().splitlines()]


def test_the_expert_is_recorded_on_every_seed(tmp_path):
    recorded = recording(tmp_path).run()
    assert (recorded.episodes, recorded.steps, recorded.tried, recorded.successes, recorded.failed) == (6, 6, 6, 6, 0)
    loaded = read(recorded)
    env = Toy().make()
    for seed, episode in enumerate(loaded.episodes):
        target = env.reset(seed=seed)[0]["target"]
        np.testing.assert_array_equal(episode.actions, [target])
        np.testing.assert_array_equal(episode.observations["target"], [target])
        assert (episode.seed, episode.success, list(episode.dones)) == (seed, True, [True])
        np.testing.assert_allclose(episode.states, [target])
    assert loaded.action == Toy().action
    assert loaded.env["flowrl"]["env"] == {"target": "robot.Toy", "tolerance": 0.2}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["toy.hdf5", "toy.seeds.jsonl"]


def test_only_successes_are_kept_and_every_seed_is_logged(tmp_path):
    recorded = recording(tmp_path, env=Moody()).run()
    assert [episode.seed for episode in read(recorded).episodes] == [1, 3, 5]
    assert [(line["seed"], line["success"], line["kept"], line["length"]) for line in lines(recorded)] == [
        (seed, seed % 2 == 1, seed % 2 == 1, 1) for seed in range(6)
    ]


def test_failures_can_be_kept_too(tmp_path):
    recorded = recording(tmp_path, env=Moody(), keep="all").run()
    assert [episode.success for episode in read(recorded).episodes] == [False, True] * 3


def test_enough_is_enough(tmp_path):
    recorded = recording(tmp_path, env=Moody(), seeds="0:1000", enough=2).run()
    assert [episode.seed for episode in read(recorded).episodes] == [1, 3]
    assert recorded.tried == 4


def test_an_episode_that_raises_costs_only_itself(tmp_path):
    recorded = recording(tmp_path, env=Moody(raises=(1,))).run()
    assert (recorded.episodes, recorded.failed) == (2, 1)
    assert lines(recorded)[1]["error"].startswith("RuntimeError: the arm fell off (test_record.py:")


@pytest.fixture
def stopped(tmp_path):
    """A recording of Moody that was interrupted in its fourth episode, with half a line in its log."""
    (tmp_path / "stop").touch()
    made = recording(tmp_path, env=Moody(interrupt=str(tmp_path / "stop")), keep="all")
    with pytest.raises(KeyboardInterrupt):
        made.run()
    with (made.parts / "seeds.jsonl").open("a") as log:
        log.write('{"seed": 3, "succ')
    (tmp_path / "stop").unlink()
    return made


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_recording_goes_on_to_the_same_file(tmp_path, stopped, workers):
    done = replace(stopped, workers=workers).run(resume=True)
    assert read(done).sha256() == read(recording(tmp_path, env=Moody(), keep="all", out=tmp_path / "whole.hdf5").run()).sha256()
    assert [line["seed"] for line in lines(done)] == list(range(6))
    assert not stopped.parts.exists()


def test_a_recording_that_has_enough_already_only_writes_the_file(stopped):
    done = replace(stopped, enough=2).run(resume=True)
    assert [one.seed for one in read(done).episodes] == [0, 1]
    assert done.tried == 3


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_loses_no_finished_episode(tmp_path):
    made = recording(tmp_path, env=Moody(dies=(2,)), workers=1, keep="all")
    with pytest.raises(CheckpointError, match=r"a worker died on seed 2 or one of the next; .*--resume"):
        made.run()
    assert {path.name for path in made.parts.glob("*.hdf5")} == {"0.hdf5", "1.hdf5"}
    assert read(replace(made, seeds="0:2,3:6", workers=0).run(resume=True)).episodes[2].seed == 3


@pytest.mark.slow
def test_workers_record_what_one_process_records(tmp_path):
    alone = recording(tmp_path, out=tmp_path / "a.hdf5", action_noise=0.001).run()
    together = recording(tmp_path, out=tmp_path / "b.hdf5", action_noise=0.001, workers=2).run()
    assert read(alone).sha256() == read(together).sha256()
    np.testing.assert_array_equal(*([one.rewards for one in read(each).episodes] for each in (alone, together)))


def test_a_recording_is_not_begun_over_another_or_with_other_settings(tmp_path, stopped):
    with pytest.raises(CheckpointError, match="go on with --resume"):
        stopped.run()
    with pytest.raises(CheckpointError, match=r"other settings: action_noise: 0.0 -> 0.5"):
        replace(stopped, action_noise=0.5).run(resume=True)
    done = recording(tmp_path, out=tmp_path / "done.hdf5")
    done.run()
    with pytest.raises(CheckpointError, match="is there already"):
        done.run(resume=True)


def test_noise_disturbs_what_is_executed_and_not_what_is_recorded(tmp_path):
    recorded = recording(tmp_path, keep="all", seeds="0:150", action_noise=0.003).run()
    episodes = read(recorded).episodes
    assert all(np.array_equal(one.actions, one.observations["target"]) for one in episodes)
    misses = np.array([one.rewards[0] for one in episodes])
    assert np.sqrt((misses**2).mean()) == pytest.approx(0.3, rel=0.2)  # 0.003 of half the range, 100
    assert recorded.successes == pytest.approx(150 * 0.495, abs=18)  # P(|N(0, 0.3)| < 0.2) = 0.495


def test_nothing_to_keep_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="0 of 1 were solved; keep=all"):
        recording(tmp_path, env=Moody(), seeds="0:1").run()
    with pytest.raises(ValueError, match="the first error: RuntimeError: the arm fell off"):
        recording(tmp_path, env=Moody(raises=(1,)), seeds="1", out=tmp_path / "b.hdf5").run()


def test_a_missing_simulator_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(MissingExtraError, match="toy cannot run here: no simulator"):
        recording(tmp_path, env=Moody(missing="no simulator")).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"action_noise": -1.0}, {"workers": -1}, {"enough": 0}, {"seeds": "5:5"}, {"validation_share": 1.0}])
def test_settings_that_cannot_work_are_refused(tmp_path, fields):
    with pytest.raises(ValueError, match=r"needs action_noise|is empty|validation_share must"):
        recording(tmp_path, **fields)


def test_the_command_records_resumes_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["record", "robot/record_toy", "seeds=0:3", "out=mine.hdf5"]) == 0
    said = capsys.readouterr().out
    assert "3 episodes of 3 steps" in said
    assert "solved         3 of 3 seeds" in said
    assert "mine.hdf5" in said
    assert main(["record", "robot/record_toy", "out=mine.hdf5", "--resume"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["record", "image/digits_g2rpo"]) == 2
    assert "not a robot.demonstrations.Recording" in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "play_seed", interrupt)
    assert main(["record", "robot/record_toy"]) == 130
    assert "flowrl record robot/record_toy --resume" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["record", "robot/record_toy", "--resume"]) == 0
