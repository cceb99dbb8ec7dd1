"""Schedules with a time per token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samplers import PerTokenSchedule, ShiftedGrid
from samplers.per_token import advanced

paces = st.lists(st.floats(0, 2), min_size=1, max_size=4)


class UnderWay:
    def __init__(self, rows, step):
        self.rows, self.step = rows, step

    def __len__(self):
        return self.rows


def follow(multipliers, shared):
    """Times of tokens under the multipliers of every step, ``(step, token)``."""
    times = [torch.ones(len(multipliers[0]), dtype=torch.float64)]
    for step, pace in enumerate(multipliers):
        times.append(advanced(times[-1], torch.tensor(pace, dtype=torch.float64), shared, step))
    return torch.stack(times)


def close(given, expected):
    torch.testing.assert_close(given, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.3])
@pytest.mark.parametrize("steps", [1, 5, 13])
def test_a_shared_schedule_is_the_standard_grid_to_the_last_bit(steps, shift):
    schedule = PerTokenSchedule.shared(steps=steps, tokens=4, shift=shift)
    grid = ShiftedGrid(steps=steps, shift=shift).times()
    assert schedule.times().shape == (steps + 1, 1, 4)
    assert torch.equal(schedule.times(), grid[:, None, None].expand(-1, 1, 4))
    assert torch.equal(schedule.action, grid)


def test_hand_made_schedules_by_hand():
    close(PerTokenSchedule.masked(2, 3).times()[:, 0], [[1.0] * 3] * 3)
    close(PerTokenSchedule.half(2, 1).times()[:, 0, 0], [1.0, 0.75, 0.5])
    close(PerTokenSchedule.constant((0.5, 2.0), 4).times()[:, 0], [[1, 1], [0.875, 0.5], [0.75, 0], [0.625, 0], [0.5, 0]])
    close(PerTokenSchedule.constant(0.5, 2, tokens=2).times()[:, 0], [[1, 1], [0.75, 0.75], [0.5, 0.5]])
    close(PerTokenSchedule.pyramid(4, 3, lag=0.5).times()[:, 0], [[1, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5], [0, 0, 0]])
    close(PerTokenSchedule.from_increments(torch.tensor([[0.25], [1.0]])).times()[:, 0, 0], [1.0, 0.75, 0.0])


def test_video_first_lets_the_actions_wait_and_action_first_the_tokens():
    video, action = PerTokenSchedule.video_first(4, 2), PerTokenSchedule.action_first(4, 2)
    close(video.times()[:, 0, 1], [1, 0.5, 0, 0, 0])
    close(video.action, [1, 1, 1, 0.5, 0])
    close(action.times()[:, 0, 1], [1, 1, 1, 0.5, 0])
    close(action.action, [1, 0.5, 0, 0, 0])
    close(PerTokenSchedule.video_first(4, 1, share=0.25).action, [1, 1, 2 / 3, 1 / 3, 0])


@given(st.integers(1, 6).flatmap(lambda steps: st.lists(st.lists(st.floats(0, 2), min_size=3, max_size=3), min_size=steps, max_size=steps)))
def test_times_never_increase_and_stay_inside_the_unit_interval(multipliers):
    times = follow(multipliers, ShiftedGrid(steps=len(multipliers), shift=3.0).times())
    assert (times.diff(dim=0) <= 0).all()
    assert ((times >= 0) & (times <= 1)).all()


@given(paces, st.integers(1, 8))
def test_a_constant_pace_goes_that_share_of_the_way(multipliers, steps):
    last = PerTokenSchedule.constant(multipliers, steps).times()[-1, 0]
    torch.testing.assert_close(last, (1 - torch.tensor(multipliers, dtype=torch.float64)).clamp_min(0), atol=1e-12, rtol=0)


def test_a_token_that_arrived_early_stays_at_data_when_it_slows_down():
    shared = ShiftedGrid(steps=4).times()
    close(follow([[2.0], [2.0], [0.0], [1.0]], shared)[:, 0], [1, 0.5, 0, 0, 0])


@given(st.floats(0.1, 20), st.integers(2, 9), st.floats(0, 2))
def test_a_token_that_stays_does_so_to_the_last_bit(shift, steps, pace):
    times = follow([[pace], *([[0.0]] * (steps - 1))], ShiftedGrid(steps=steps, shift=shift).times())
    assert torch.equal(times[1:], times[1:2].expand(steps, 1))


def test_a_token_that_waited_goes_on_from_where_it_is():
    close(follow([[0.0], [0.0], [1.0], [1.0]], ShiftedGrid(steps=4).times())[:, 0], [1, 1, 1, 0.75, 0.5])


def test_next_serves_every_row_of_a_sample():
    schedule = PerTokenSchedule.constant((0.5, 1.0), 2)
    frames, action = schedule.next(UnderWay(3, 0))
    close(frames, [[0.75, 0.5]] * 3)
    close(action, 0.5)
    rows = PerTokenSchedule.from_increments(torch.tensor([[[0.1], [0.2]]]))
    close(rows.next(UnderWay(2, 0))[0], [[0.9], [0.8]])
    with pytest.raises(ValueError, match=r"of 2 rows, the sample has 3"):
        rows.next(UnderWay(3, 0))
    with pytest.raises(ValueError, match=r"1 steps, all of which are taken"):
        rows.next(UnderWay(2, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerTokenSchedule(torch.ones(3, 2)), r"axes \(step, batch, token\)"),
        (lambda: PerTokenSchedule(torch.tensor([1.0, 0.5, 0.6])[:, None, None]), r"never increase"),
        (lambda: PerTokenSchedule(torch.tensor([0.9, 0.5])[:, None, None]), r"begin at 1"),
        (lambda: PerTokenSchedule(torch.tensor([1.0, -0.1])[:, None, None]), r"fall below 0"),
        (lambda: PerTokenSchedule(torch.tensor([1.0, float("nan")])[:, None, None]), r"never increase"),
        (lambda: PerTokenSchedule(torch.ones(3, 1, 1), torch.tensor([1.0, 0.0])), r"must hold 3 times"),
        (lambda: PerTokenSchedule(torch.ones(2, 1, 1), torch.tensor([1.0, 0.5])), r"must end at 0"),
        (lambda: PerTokenSchedule.shared(0, 2), r"steps"),
        (lambda: PerTokenSchedule.shared(2, 0), r"tokens"),
        (lambda: PerTokenSchedule.constant(0.5, 3), r"or a number and how many tokens"),
        (lambda: PerTokenSchedule.constant((0.5, 0.5), 3, tokens=3), r"got \(0\.5, 0\.5\) and tokens=3"),
        (lambda: PerTokenSchedule.constant((2.5,), 3), r"\[0, 2\], got \(2\.5,\)"),
        (lambda: PerTokenSchedule.video_first(1, 2), r"one for each of the two streams"),
        (lambda: PerTokenSchedule.video_first(4, 2, share=1.0), r"share must lie inside"),
        (lambda: PerTokenSchedule.pyramid(4, 2, lag=1.0), r"lag must lie in"),
        (lambda: PerTokenSchedule.from_increments(torch.tensor([[-0.1]])), r"never put back"),
        (lambda: PerTokenSchedule.from_increments(torch.ones(2)), r"\(step, token\), got shape \(2,\)"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
