"""A chunk under way: the standard sampler where times are shared, and evaluations that can be left out."""

import pytest
import torch
from small_worlds import LAYOUT, ROWS, network

from robot.world.denoising import Denoising, JointField
from samplers import ODESampler, PerTokenSchedule, ShiftedGrid

SCHEDULES = {name: getattr(PerTokenSchedule, name)(6, 3) for name in ("shared", "masked", "half", "video_first", "action_first", "pyramid")}


def denoised(net, noise, condition, schedule, *, skip=True):
    return Denoising(JointField(network=net), LAYOUT, condition, noise, skip=skip).follow(schedule)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shared_schedule_equals_the_standard_sampler_bit_for_bit(either_network, noise, condition, shift):
    state = denoised(either_network, noise, condition, PerTokenSchedule.shared(5, 3, shift=shift))
    standard = ODESampler(grid=ShiftedGrid(steps=5, shift=shift)).sample(JointField(network=either_network), noise, condition)
    assert torch.equal(state.x, standard.final)
    assert standard.network_evaluations == 5 * ROWS


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_a_grid_of_the_standard_sampler_bit_for_bit(either_network, noise, condition, name):
    schedule = SCHEDULES[name]
    rows = torch.cat([schedule.times(), schedule.action[:, None, None]], dim=2)  # the actions are the last row of a state
    standard = ODESampler(grid=PerTokenSchedule(rows, schedule.action)).sample(JointField(network=either_network), noise, condition)
    assert torch.equal(denoised(either_network, noise, condition, schedule, skip=False).x, standard.final)


@pytest.mark.parametrize("name", SCHEDULES)
def test_skipping_changes_no_result(either_network, noise, condition, name):
    whole, skipped = (denoised(either_network, noise, condition, SCHEDULES[name], skip=skip) for skip in (False, True))
    torch.testing.assert_close(skipped.x, whole.x, rtol=0, atol=1e-6)
    assert whole.video_rows == whole.action_rows == 6 * ROWS


@pytest.mark.parametrize(("name", "video", "action"), [("masked", 1, 6), ("video_first", 4, 3), ("action_first", 3, 3), ("shared", 6, 6)])
def test_what_skipping_leaves_out_by_hand(noise, condition, name, video, action):
    """Masked frames are evaluated once; frames that have arrived once more, at data; actions that wait or have arrived not at all."""
    state = denoised(network(video_sees_action=False), noise, condition, SCHEDULES[name])
    assert (state.video_rows, state.action_rows) == (video * ROWS, action * ROWS)


def test_only_rows_whose_frames_move_are_evaluated_again(noise, condition):
    increments = torch.full((4, ROWS, 3), 0.25)
    increments[:, 1:] = 0  # all rows but the first are masked
    schedule, net = PerTokenSchedule.from_increments(increments), network(video_sees_action=False)
    state = denoised(net, noise, condition, schedule)
    assert state.video_rows == ROWS + 3
    torch.testing.assert_close(state.x, denoised(net, noise, condition, schedule, skip=False).x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_under_causal_attention_skipping_changes_no_result_either(noise, condition, name):
    net = network(video_sees_action=False, frame_attention="causal")
    whole, skipped = (denoised(net, noise, condition, SCHEDULES[name], skip=skip) for skip in (False, True))
    torch.testing.assert_close(skipped.x, whole.x, rtol=0, atol=1e-6)


def test_under_causal_attention_frames_that_have_arrived_are_not_evaluated_again(noise, condition):
    """Times 1 1 1, .5 1 1, 0 .5 1, 0 0 .5, 0 0 0: all 3 frames at first; from the first on; from the first on (it went to 0); then 2."""
    net, schedule = network(video_sees_action=False, frame_attention="causal"), PerTokenSchedule.pyramid(4, 3, lag=0.5)
    state = denoised(net, noise, condition, schedule)
    assert (state.video_rows, state.video_frames) == (4 * ROWS, (3 + 3 + 3 + 2) * ROWS)
    torch.testing.assert_close(state.x, denoised(net, noise, condition, schedule, skip=False).x, rtol=0, atol=1e-6)


def test_where_frames_see_actions_nothing_can_be_left_out(noise, condition):
    state = denoised(network(video_sees_action=True), noise, condition, SCHEDULES["masked"])
    assert state.video_rows == 6 * ROWS


def test_masked_frames_keep_their_noise(either_network, noise, condition):
    state = denoised(either_network, noise, condition, SCHEDULES["masked"])
    assert torch.equal(state.latents, LAYOUT.latents(noise))
    assert not torch.allclose(state.actions, LAYOUT.actions(noise))
    assert state.times.tolist() == [[1.0] * 3] * ROWS
    assert state.action_time.tolist() == [0.0] * ROWS


def test_euler_by_hand_moves_each_row_by_its_own_step(condition):
    """Velocity 2 everywhere: from 1 the first frame goes to 0.5, x falls by 1; the second stays; actions go to 0.25, they fall by 1.5."""
    state = Denoising(lambda x, t, c: torch.full_like(x, 2.0), LAYOUT, condition, torch.zeros(ROWS, *LAYOUT.shape))
    state.advance(torch.tensor([[0.5, 1.0, 0.9]] * ROWS), torch.tensor(0.25))
    torch.testing.assert_close(state.x[:, :, 0], torch.tensor([[-1.0, 0.0, -0.2, -1.5]] * ROWS))
    assert state.step == 1


def test_times_that_rise_or_leave_the_interval_are_refused(noise, condition, either_network):
    state = Denoising(JointField(network=either_network), LAYOUT, condition, noise)
    state.advance(torch.full((ROWS, 3), 0.5), torch.tensor(0.5))
    for frames, action in ((0.6, 0.4), (0.4, 0.6), (-0.1, 0.4)):
        with pytest.raises(ValueError, match="times must satisfy"):
            state.advance(torch.full((ROWS, 3), frames), torch.tensor(action))
    assert state.step == 1


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_a_schedule_of_another_number_of_frames_is_refused(noise, condition, tokens):
    with pytest.raises(ValueError, match=rf"of shape \(5, 3\), got \(5, {tokens}\); make the schedule for tokens=3"):
        denoised(network(), noise, condition, PerTokenSchedule.shared(2, tokens))


def test_no_gradient_reaches_the_network(noise, condition):
    net = network()
    state = Denoising(JointField(network=net), LAYOUT, condition, noise)
    state.advance(torch.full((ROWS, 3), 0.5), torch.tensor(0.5))
    assert not state.x.requires_grad
