"""The world-action model as a policy."""

import pytest
import torch

from robot import ActionSpec, NormStats, Observation, PerTokenSchedule, WorldActionModel
from robot.learning.encoders import SensorStats, StateEncoder
from robot.world.latents import StateFrames
from robot.world.layout import Layout
from robot.world.network import MixtureOfTransformers
from samplers import ODESampler, ShiftedGrid

STATS = {name: SensorStats(shape=(2,), low=-torch.ones(2), high=torch.ones(2)) for name in ("agent", "goal")}
ACTION = ActionSpec(names=("x", "y"), control_rate_hz=10)


def model(**settings):
    torch.manual_seed(0)
    codec, encoder = StateFrames(vectors=("agent",)).build(STATS), StateEncoder(sensors=("goal",)).build(STATS)
    tasks = settings.get("tasks", ())
    network = MixtureOfTransformers(layers=1, video_width=8, action_width=8, heads=2, head_width=4).build(
        Layout(frames=2, tokens=1, channels=2, horizon=4, dof=2), features=encoder.width + len(tasks)
    )
    given = {
        "codec": codec,
        "encoder": encoder,
        "network": network.eval(),
        "stats": NormStats(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5])),
        "action": ACTION,
        "stride": 2,
        "execute": 2,
        "schedule": PerTokenSchedule.shared(5, 2),
        "clip": None,
    }
    return WorldActionModel(**given | settings)


def observation(rows=3):
    generator = torch.Generator().manual_seed(5)
    return Observation({name: torch.rand(rows, 1, 2, generator=generator) for name in STATS})


def test_its_chunk_is_the_standard_sampler_s_in_physical_units():
    policy, seen = model(), observation()
    noise = policy.layout.noise(3, torch.Generator().manual_seed(7))
    final = ODESampler(grid=ShiftedGrid(steps=5)).sample(policy.field(), noise, policy.condition(seen)).final
    chunk = policy.act(seen, torch.Generator().manual_seed(7))
    torch.testing.assert_close(chunk.values, torch.tensor([1.0, 0.0]) + torch.tensor([2.0, 0.5]) * policy.layout.actions(final))
    assert chunk.values.shape == (3, 4, 2)
    assert (policy.sensors, policy.history, policy.horizon) == (("agent", "goal"), 1, 4)


def test_a_row_does_not_depend_on_its_neighbours():
    policy, seen = model(), observation()
    together = policy.act(seen, [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]).values
    alone = policy.act(seen[1:2], [torch.Generator().manual_seed(2)]).values
    torch.testing.assert_close(together[1:2], alone)


def test_another_schedule_gives_other_actions_and_leaves_the_model_as_it_is():
    policy, seen = model(), observation()
    masked = policy.with_schedule(PerTokenSchedule.masked(5, 2))
    first, second = (p.act(seen, torch.Generator().manual_seed(0)).values for p in (policy, masked))
    assert not torch.allclose(first, second)
    assert masked.network is policy.network
    assert torch.equal(policy.act(seen, torch.Generator().manual_seed(0)).values, first)


def test_actions_are_clipped_in_normalised_units():
    values = model(clip=0.1).act(observation(), torch.Generator().manual_seed(0)).values
    assert values[..., 0].min() >= 1 - 0.2 - 1e-6
    assert values[..., 0].max() <= 1 + 0.2 + 1e-6


def test_imagined_frames_are_shown_as_sensors_show_them():
    policy = model()
    state = policy.begin(observation(), torch.Generator().manual_seed(0))
    frames = policy.imagined(state)
    assert {name: tuple(value.shape) for name, value in frames.items()} == {"agent": (3, 2, 2)}
    torch.testing.assert_close(frames["agent"], state.latents[:, :, 0])


def test_the_task_is_told():
    seen = observation()
    chunks = [model(tasks=("push", "pull"), task=task).act(seen, torch.Generator().manual_seed(0)).values for task in ("push", "pull")]
    assert not torch.allclose(*chunks)
    with pytest.raises(ValueError, match=r"knows the tasks push, pull; set task to one of them, got 'pul'.*pull"):
        model(tasks=("push", "pull"), task="pul")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"execute=5"):
        model(execute=5)
    with pytest.raises(ValueError, match=r"no goal"):
        model().act(Observation({"agent": torch.zeros(1, 1, 2)}))
    for nothing in ("masked", None, PerTokenSchedule, torch.ones(6, 1, 2)):
        with pytest.raises(ValueError, match=r"PerTokenSchedule\.masked\(steps=5, tokens=2\)"):
            model().with_schedule(nothing)
