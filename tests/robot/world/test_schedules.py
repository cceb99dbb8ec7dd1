"""Schedules and training times as configs name them."""

import pytest
import torch

from flowrl.config import instantiate
from robot.world import IndependentTimes, JointTimes, SharedTimes

G = torch.Generator


@pytest.mark.parametrize(
    ("config", "frames", "actions"),
    [
        ({"target": "SharedSchedule", "steps": 2}, [[1, 1], [0.5, 0.5], [0, 0]], [1, 0.5, 0]),
        ({"target": "MaskedSchedule", "steps": 2}, [[1, 1], [1, 1], [1, 1]], [1, 0.5, 0]),
        ({"target": "HalfSchedule", "steps": 2}, [[1, 1], [0.75, 0.75], [0.5, 0.5]], [1, 0.5, 0]),
        ({"target": "ConstantSchedule", "steps": 2, "multipliers": [2.0, 0.5]}, [[1, 1], [0, 0.75], [0, 0.5]], [1, 0.5, 0]),
        ({"target": "VideoFirstSchedule", "steps": 4}, [[1, 1], [0.5, 0.5], [0, 0], [0, 0], [0, 0]], [1, 1, 1, 0.5, 0]),
        ({"target": "ActionFirstSchedule", "steps": 4}, [[1, 1], [1, 1], [1, 1], [0.5, 0.5], [0, 0]], [1, 0.5, 0, 0, 0]),
        ({"target": "PyramidSchedule", "steps": 2, "lag": 0.5}, [[1, 1], [0, 1], [0, 0]], [1, 0.5, 0]),
    ],
)
def test_a_config_gives_these_times_of_frames_and_actions(config, frames, actions):
    config["target"] = f"robot.world.{config['target']}"
    source = instantiate(config)
    schedule = source.build(2)
    assert source.steps == schedule.steps == config["steps"]
    torch.testing.assert_close(schedule.times()[:, 0], torch.tensor(frames, dtype=torch.float64))
    torch.testing.assert_close(schedule.action, torch.tensor(actions, dtype=torch.float64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "robot.world.SharedSchedule", "steps": 0}, "steps must be at least 1, got 0"),
        ({"target": "robot.world.SharedSchedule", "shift": 0.0}, "shift must be > 0"),
        ({"target": "robot.world.PyramidSchedule", "lag": 1.0}, r"lag must lie in \[0, 1\), got 1.0"),
        ({"target": "robot.world.ConstantSchedule", "multipliers": [2.5]}, r"multipliers must lie in \[0, 2\]"),
        ({"target": "robot.world.VideoFirstSchedule", "steps": 1}, "steps must be at least 2"),
        ({"target": "robot.world.IndependentTimes", "masked": 0.7, "known": 0.4}, "at most 1 together, got 0.7 and 0.4"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_config_is_read(fields, message):
    with pytest.raises(ValueError, match=message):
        instantiate(fields)


def test_independent_times_are_uniform_and_uncorrelated():
    times = IndependentTimes().draw(20000, 2, G().manual_seed(0))
    assert times.shape == (20000, 3)
    torch.testing.assert_close(times.mean(0), torch.full((3,), 0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(times.var(0), torch.full((3,), 1 / 12), rtol=0, atol=0.002)
    assert torch.corrcoef(times.T).fill_diagonal_(0).abs().max().item() < 0.03


def test_shares_of_the_frames_lie_exactly_at_the_ends_and_none_of_the_actions():
    times = IndependentTimes(masked=0.2, known=0.1).draw(20000, 2, G().manual_seed(0))
    assert (times[:, :-1] == 1).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (times[:, :-1] == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert bool(((times[:, -1] > 0) & (times[:, -1] < 1)).all())
    inner = times[:, :-1][(times[:, :-1] > 0) & (times[:, :-1] < 1)]
    assert inner.mean().item() == pytest.approx(0.5, abs=0.01)


def test_shared_times_are_one_for_all_frames_and_another_for_the_actions_and_joint_ones_one_for_all():
    shared, joint = (kind.draw(5000, 3, G().manual_seed(0)) for kind in (SharedTimes(), JointTimes()))
    for times, same in ((shared, 3), (joint, 4)):
        assert times.shape == (5000, 4)
        assert torch.equal(times[:, :same], times[:, :1].expand(-1, same))
        assert times.mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(shared[:, 2:].T)[0, 1].abs().item() < 0.05
