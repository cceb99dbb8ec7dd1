"""Training world-action models: what is learned, resumed bit for bit, and refused where it would go wrong."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from wams import NETWORK, job

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import RectifiedFlow
from flowrl.shapes import seeded_generator
from flowrl.train import AdamW
from flowrl.train.metrics import read_metrics
from robot.demonstrations import Demonstrations, Episode
from robot.learning import ImageEncoder, StateEncoder, TwoPaths, TwoWays
from robot.learning.examples import seen_at
from robot.learning.session import Session
from robot.types import ActionSpec, Observation
from robot.world import (
    ConstantSchedule,
    JointTimes,
    LatentCodec,
    MixtureOfTransformers,
    SharedSchedule,
    SharedTimes,
    StateFrames,
    Tasks,
    WorldActionFile,
    load_world_action,
)

CROPPED = ImageEncoder(cameras=("picture",), channels=(4, 4), points=2, width=8, crop=12)


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    """Drawing takes longer than training here."""
    if "curve" not in request.node.name:
        monkeypatch.setattr("robot.learning.report.write_curve", lambda record, curves: None)


def lines(run):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(run / "metrics.jsonl")]


def test_a_step_of_one_batch_is_the_flow_matching_error_of_each_stream_by_hand(tmp_path):
    """The network gives 0, so the error is the squared velocity, noise − data: the mean over each stream's own numbers, not the padding."""
    made = job(tmp_path, video_weight=0.5)
    lesson = made.lesson()
    module = lesson.begin(torch.device("cpu"))
    for stream in (module.network.video, module.network.action):
        torch.nn.init.zeros_(stream.head.weight)
        torch.nn.init.zeros_(stream.head.bias)
    rows = torch.arange(8)
    loss = lesson.loss(module, rows, slice(0, 8), 5)
    generator = seeded_generator(0, 2, 5)
    flat = torch.randn(8, 2 + 4, generator=generator)  # two frames of one number, four actions
    windows, state = lesson.material.train, lesson.material.sensors["state"]
    middle, half = (state.high + state.low) / 2, (state.high - state.low) / 2
    video = ((windows.frames["state"][windows.later[rows]] - middle) / half).squeeze(-1)
    actions = lesson.material.stats.normalise(windows.chunks(rows)).squeeze(-1)
    velocity = [
        RectifiedFlow().sample(data, noise, 0.3).endpoints.velocity for data, noise in ((video, flat[:, :2]), (actions, flat[:, 2:]))
    ]
    torch.testing.assert_close(loss, 0.5 * (velocity[0] ** 2).mean() + (velocity[1] ** 2).mean())


def test_future_frames_are_those_a_stride_apart(tmp_path):
    windows = job(tmp_path, demonstrations=TwoPaths(episodes=1, length=6), stride=2, frames=2, validation_share=0.0).lesson().material.train
    assert windows.later.tolist() == [[2, 4], [3, 5], [4, 5], [5, 5], [5, 5], [5, 5]]


def test_a_run_stopped_and_resumed_ends_bit_for_bit_like_one_that_is_not(tmp_path):
    fields = {"encoder": CROPPED, "observed": 2, "times": SharedTimes(), "ema_decay": 0.9}
    job(tmp_path / "whole", **fields).run()
    session = Session(job(tmp_path / "parts", **fields), resume=False)
    step = session._step

    def stopping():
        if session.progress.step == 4:
            raise RuntimeError("the power fails")
        return step()

    session._step = stopping
    with pytest.raises(RuntimeError, match="power"):
        session.loop()
    job(tmp_path / "parts", **fields).run(resume=True)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / run / "world_action.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_each_part_of_a_batch_draws_the_noise_that_it_has_in_the_whole(tmp_path):
    """So two processes, each with half of the rows, have the mean loss of one."""
    lesson = job(tmp_path, encoder=CROPPED).lesson()
    module = lesson.begin(torch.device("cpu")).eval()
    rows = torch.arange(8)
    whole = lesson.loss(module, rows, slice(0, 8), 1)
    halves = [lesson.loss(module, rows[part], part, 1) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_a_run_leaves_a_model_with_its_origin_a_curve_and_a_page(tmp_path):
    summary = job(tmp_path / "run").run()
    assert summary.checkpoint == tmp_path / "run" / "world_action.safetensors"
    told = "\n".join(summary.lines())
    assert all(text in told for text in ("loss video", "action error masked", "last frame error", "world-action model"))
    page = summary.report.read_text(encoding="utf-8")
    assert all(text in page for text in ("world-action model", "Error of imagined frames", "Loss by stream", "StateFrames", "</html>"))
    assert (tmp_path / "run" / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    last = [line for line in lines(tmp_path / "run") if line["kind"] == "eval"][-1]
    assert last["eval/loss"] == pytest.approx(last["eval/loss_video"] + last["eval/loss_action"])
    (tmp_path / "run" / "report.html").unlink()
    from flowrl.cli.main import main

    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page


def test_validation_measures_the_same_noise_each_time_and_nothing_without_held_out_episodes(tmp_path):
    job(tmp_path / "still", optimizer=AdamW(lr=1e-30)).run()
    measured = [{**line, "update": 0} for line in lines(tmp_path / "still") if line["kind"] == "eval"]
    assert len(measured) == 2
    assert measured[0] == measured[1]
    assert job(tmp_path / "none", validation_share=0.0).run().measured == {}


def test_other_demonstrations_and_other_times_are_no_continuation(tmp_path):
    job(tmp_path / "run").run()
    with pytest.raises(
        CheckpointError, match=r"another configuration .*times.target: robot.world.IndependentTimes -> robot.world.JointTimes"
    ):
        job(tmp_path / "run", times=JointTimes(), steps=8).run(resume=True)
    with pytest.raises(CheckpointError, match="was trained on other demonstrations or latents"):
        job(tmp_path / "run", demonstrations=TwoPaths(episodes=24, seed=1), steps=8).run(resume=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 0}, "WorldActionTraining.frames must be at least 1, got 0"),
        ({"video_weight": -1.0}, "video_weight must be >= 0, got -1.0"),
        ({"video_weight": float("nan")}, "video_weight must be >= 0, got nan"),
        ({"clip": 0.0}, "clip must be > 0, got 0.0; null leaves"),
        ({"execute": 5}, "cannot give execute=5"),
        ({"schedule": ConstantSchedule(multipliers=(1.0,) * 4)}, "has 4 multipliers, but the model predicts 2 frames; give one for each"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, **fields)


def test_a_clip_that_would_cut_demonstrated_actions_and_sensors_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"clip=1 would cut demonstrated actions, which reach .* after action_scaling=mean_std"):
        job(tmp_path, action_scaling="mean_std").lesson()
    with pytest.raises(ConfigError, match="needs the sensor 'stat', which the demonstrations do not have; did you mean 'state'"):
        job(tmp_path, latents=StateFrames(vectors=("stat",))).lesson()


class Learned:
    """Latents by weights that were learned elsewhere."""

    needs = ("state",)
    weight = 2.0

    def build(self, stats):
        del stats
        return _LearnedCodec(self.weight)


class _LearnedCodec(LatentCodec):
    def __init__(self, weight):
        super().__init__(("state",), 1, 2)
        self.layer = torch.nn.Linear(1, 2)
        torch.nn.init.constant_(self.layer.weight, weight)
        torch.nn.init.zeros_(self.layer.bias)

    def encode(self, frames):
        return self.layer(frames["state"])[:, :, None]

    def decode(self, latents):
        return {"state": latents[:, :, 0].mean(-1, keepdim=True)}


def test_a_learned_codec_is_kept_in_the_file_and_never_trained_and_a_run_goes_on_with_no_other(tmp_path, monkeypatch):
    job(tmp_path / "run", latents=Learned()).run()
    tensors = load_file(tmp_path / "run" / "world_action.safetensors")
    assert tensors["codec.layer.weight"].tolist() == [[2.0], [2.0]]
    job(tmp_path / "run", latents=Learned(), steps=8).run(resume=True)
    monkeypatch.setattr(Learned, "weight", 3.0)
    with pytest.raises(CheckpointError, match=r"was trained on other demonstrations or latents \(sha256"):
        job(tmp_path / "run", latents=Learned(), steps=10).run(resume=True)


def test_only_the_latest_frames_are_shown_as_latents_and_the_whole_history_beside_them(tmp_path):
    lesson = job(tmp_path, encoder=StateEncoder(sensors=("state",), history=3), observed=2, validation_share=0.0).lesson()
    lesson.begin(torch.device("cpu"))
    latents, seen = lesson._train.shown(torch.tensor([4]))
    states = lesson.material.train.frames["state"]
    assert torch.equal(seen["state"][0], states[2:5])
    torch.testing.assert_close(latents[0, :, 0], lesson._modules.codec.encode({"state": states[None, 3:5]})[0, :, 0])


class Turned:
    """The demonstrations of :class:`TwoPaths` that go one way."""

    def __init__(self, way):
        self.way = way

    def load(self):
        data = TwoPaths(episodes=60).load()
        episodes = tuple(episode for episode in data.episodes if episode.actions[0, 0] * self.way > 0)
        return Demonstrations(episodes=episodes, action=data.action)


LEARNING = {
    "network": MixtureOfTransformers(video_width=32, action_width=32, layers=2, heads=2, head_width=16),
    "steps": 400,
    "batch_size": 64,
    "optimizer": AdamW(lr=4e-3, schedule="cosine", warmup_steps=20),
    "ema_decay": 0.97,
    "validation_share": 0.0,
    "log_every": 40,
    "checkpoint_every": 1000,
    "schedule": SharedSchedule(steps=8),
}


def seen(state, rows):
    frames = {name: torch.as_tensor(value) for name, value in seen_at(state).items()}
    return Observation({name: frame.expand(rows, 1, *frame.shape) for name, frame in frames.items()})


def denoised(model, state, rows):
    run = model.begin(seen(state, rows), torch.Generator().manual_seed(0))
    while run.step < model.schedule.steps:
        run.advance(*model.schedule.next(run))
    return model.imagined(run)["state"].squeeze(-1), model.chunk(run).values.squeeze(-1)


@pytest.mark.slow
def test_both_ways_are_learned_and_the_imagined_frames_show_where_the_actions_lead(tmp_path):
    """From 0.2 the actions are ±1; the frames lie 2 and 4 steps of 0.05 ahead, or as far as the episode still goes.

    Seen at any of its 8 steps alike, that is 13/8 and 22/8 steps on average. Bounds are about twice what two seeds gave.
    """
    job(tmp_path / "run", demonstrations=TwoPaths(), **LEARNING).run()
    loss = [line["loss"] for line in lines(tmp_path / "run")]
    assert loss[-1] < 0.4 * loss[0]
    frames, actions = denoised(load_world_action(tmp_path / "run"), 0.2, 500)
    up = actions.mean(1) > 0
    assert up.float().mean().item() == pytest.approx(0.5, abs=0.2)
    assert actions[up].mean().item() == pytest.approx(1, abs=0.2)
    assert actions[~up].mean().item() == pytest.approx(-1, abs=0.2)
    assert ((frames[:, -1] > 0.2) == up).float().mean().item() > 0.9
    for way, rows in ((1, up), (-1, ~up)):
        torch.testing.assert_close(frames[rows].mean(0), 0.2 + way * 0.05 * torch.tensor([13 / 8, 22 / 8]), rtol=0, atol=0.05)


@pytest.mark.slow
def test_the_task_decides_where_nothing_that_is_seen_does(tmp_path):
    tasks = Tasks(tasks={"right": Turned(1), "left": Turned(-1)})
    job(tmp_path / "run", demonstrations=tasks, **(LEARNING | {"steps": 200})).run()
    for task, way in (("right", 1), ("left", -1)):
        model = WorldActionFile(path=str(tmp_path / "run"), task=task).load()
        frames, actions = denoised(model, 0.0, 100)
        assert (way * actions > 0).float().mean().item() > 0.95
        assert (way * frames[:, -1] > 0).float().mean().item() > 0.95
    with pytest.raises(ConfigError, match="knows the tasks right, left; set task to one of them, got 'lefd'; did you mean 'left'"):
        WorldActionFile(path=str(tmp_path / "run"), task="lefd").load()


def test_tasks_must_agree_in_actions_and_sensors():
    with pytest.raises(ConfigError, match=r"the task 'b' has the actions .*'x', 'y'.* the task 'a' "):
        Tasks(tasks={"a": TwoPaths(episodes=1), "b": TwoWays(episodes=1)}).load()
    bare = Episode(
        observations={"state": np.zeros((2, 1))}, actions=np.zeros((2, 1)), rewards=np.zeros(2), dones=np.zeros(2, bool), success=True
    )
    other = Turned(1)
    other.load = lambda: Demonstrations(episodes=(bare,), action=ActionSpec(names=("x",), control_rate_hz=10.0))
    with pytest.raises(ConfigError, match=r"the task 'b' shows {'state'.*one model needs the same sensors"):
        Tasks(tasks={"a": TwoPaths(episodes=1), "b": other}).load()


def test_every_frame_names_its_task():
    data = Tasks(tasks={"a": TwoPaths(episodes=2, length=3), "b": TwoPaths(episodes=1, length=2)}).load()
    assert [episode.observations["task"].tolist() for episode in data.episodes] == [[[1, 0]] * 3, [[1, 0]] * 3, [[0, 1]] * 2]
    assert json.loads(json.dumps(data.env)) == {"tasks": {"a": {"env_name": "TwoPaths"}, "b": {"env_name": "TwoPaths"}}}


@pytest.mark.slow
def test_a_closed_loop_of_a_trained_model_hits_its_target(tmp_path):
    """The toy's target is its observation and its only right action: chance succeeds one time in ten."""
    from robot.demonstrations import RobomimicHDF5
    from robot.envs import Toy
    from robot.evaluation import Rollout

    pytest.importorskip("h5py")
    from robot.demonstrations import Recording

    Recording(env=Toy(), out=tmp_path / "toy.hdf5", seeds="0:64").run()
    small = {"horizon": 1, "execute": 1, "frames": 1, "network": NETWORK, "stride": 1}
    learned = LEARNING | small | {"steps": 250, "demonstrations": RobomimicHDF5(path=tmp_path / "toy.hdf5"), "name": "toy"}
    job(tmp_path / "run", latents=StateFrames(vectors=("target",)), **learned).run()
    rollout = Rollout(
        env=Toy(), policy=WorldActionFile(path=str(tmp_path / "run")), run_dir=tmp_path / "rollout", seeds="1000:1050", rows=50, videos=0
    )
    assert sum(result.success for result in rollout.run().results) >= 45
    recorded = json.loads((tmp_path / "rollout" / "run.json").read_text(encoding="utf-8"))
    assert list(recorded["checkpoints"]) == [str(tmp_path / "run")]


def test_what_is_told_beside_the_frames_reaches_the_network(tmp_path):
    """A goal that is seen and not imagined."""
    lesson = job(tmp_path, encoder=StateEncoder(sensors=("state",), history=2)).lesson()
    module = lesson.begin(torch.device("cpu"))
    assert lesson._train.shown(torch.tensor([0, 1]))[0].shape == (2, 1, 1, 1)
    condition = module.condition(*lesson._train.shown(torch.tensor([0, 1])))
    assert condition.tensors["features"].shape == (2, 2)
    lesson.loss(module, torch.arange(8), slice(0, 8), 0).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
