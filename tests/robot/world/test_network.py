"""The joint network: streams, times, masks."""

import pytest
import torch
from small_worlds import LAYOUT, ROWS, network

from flowrl.flow import RectifiedFlow
from flowrl.testing import check_field
from robot.world.denoising import JointField
from robot.world.network import MixtureOfTransformers


def test_it_is_a_velocity_field(either_network, noise, condition):
    check_field(JointField(network=either_network), noise, condition)


def test_scalar_batch_and_per_token_times_agree_when_they_are_equal(either_network, noise, condition):
    field = JointField(network=either_network)
    expected = field(noise, torch.full((ROWS, 4), 0.3), condition)
    assert torch.equal(field(noise, torch.full((ROWS,), 0.3), condition), expected)
    assert torch.equal(field(noise, 0.3, condition), expected)


def test_observed_frames_are_told_that_they_are_clean(either_network, noise, condition):
    told = []
    either_network.video.time.register_forward_pre_hook(lambda _, times: told.append(times[0]))
    either_network(noise, torch.full((ROWS, 4), 0.3), **condition.tensors)
    torch.testing.assert_close(told[0], torch.tensor([[0.0, 300.0, 300.0, 300.0]]).expand(ROWS, -1))


@pytest.mark.parametrize("row", range(4), ids=["frame 0", "frame 1", "frame 2", "actions"])
def test_every_row_has_a_time_of_its_own(either_network, noise, condition, row):
    times = torch.full((ROWS, 4), 0.5)
    later = times.clone()
    later[:, row] = 0.2
    field = JointField(network=either_network)
    moved = (field(noise, later, condition) - field(noise, times, condition)).abs().amax((0, 2))
    assert moved[row] > 1e-4


def test_a_frame_at_time_1_tells_nothing_of_its_content(either_network, noise, condition):
    """What the network sees of a frame at t = 1 is noise to the last bit, whatever the frame was: the actions cannot depend on it."""
    field, path, times = JointField(network=either_network), RectifiedFlow(), torch.full((ROWS, 4), 0.4)
    times[:, 1] = 1.0
    data = LAYOUT.pack(torch.randn(ROWS, 3, 2, 3), torch.randn(ROWS, 4, 2))
    other = data.clone()
    other[:, 1, :6] = 100 * torch.randn(ROWS, 6)
    first, second = (field(path.sample(x, noise, times).x_t, times, condition) for x in (data, other))
    assert torch.equal(first, second)
    times[:, 1] = 0.9
    first, second = (field(path.sample(x, noise, times).x_t, times, condition) for x in (data, other))
    assert not torch.allclose(LAYOUT.actions(first), LAYOUT.actions(second))


def test_a_hidden_frame_is_cut_off_from_the_actions(noise, condition):
    """With one layer actions see frames themselves; with more, also what other frames took from the hidden one."""
    other = noise.clone()
    other[:, 1, :6] += 1
    for sees_action in (True, False):
        net = network(layers=1, video_sees_action=sees_action)
        hidden, open_eyed = JointField(network=net, hidden=torch.tensor([False, True, False])), JointField(network=net)
        first, second = (LAYOUT.actions(hidden(x, 0.5, condition)) for x in (noise, other))
        assert torch.equal(first, second)
        assert not torch.allclose(*(LAYOUT.actions(open_eyed(x, 0.5, condition)) for x in (noise, other)))


def test_hidden_frames_are_named_on_any_device(noise, condition):
    elsewhere = type(condition)({name: value.to("meta") for name, value in condition.tensors.items()})
    field = JointField(network=network().to("meta"), hidden=torch.tensor([False, True, False]))
    assert field(noise.to("meta"), 0.5, elsewhere).device.type == "meta"


def test_frames_do_not_see_actions_unless_they_are_told_to(noise, condition):
    other = noise.clone()
    other[:, -1] += 1
    for sees in (True, False):
        field = JointField(network=network(video_sees_action=sees))
        same = torch.equal(LAYOUT.latents(field(noise, 0.5, condition)), LAYOUT.latents(field(other, 0.5, condition)))
        assert same is not sees


def test_causal_frames_do_not_look_ahead(noise, condition):
    other = noise.clone()
    other[:, 2, :6] += 1
    for attention, blind in (("causal", True), ("full", False)):
        field = JointField(network=network(frame_attention=attention, video_sees_action=False))
        first, second = (LAYOUT.latents(field(x, 0.5, condition)) for x in (noise, other))
        assert torch.equal(first[:, :2], second[:, :2]) is blind
        assert not torch.allclose(first[:, 2], second[:, 2])


def test_padding_stays_zero(either_network, noise, condition):
    velocity = JointField(network=either_network)(noise, 0.5, condition)
    assert (velocity[:, :3, 6:] == 0).all()


def test_observed_frames_and_features_are_seen(either_network, noise, condition):
    field = JointField(network=either_network)
    before = field(noise, 0.5, condition)
    for name in ("observed", "features"):
        changed = type(condition)({**condition.tensors, name: condition.tensors[name] + 1})
        assert not torch.allclose(LAYOUT.actions(field(noise, 0.5, changed)), LAYOUT.actions(before))
        assert not torch.allclose(LAYOUT.latents(field(noise, 0.5, changed)), LAYOUT.latents(before))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"video_width=15"):
        MixtureOfTransformers(video_width=15)
    with pytest.raises(ValueError, match=r"layers must be at least 1"):
        MixtureOfTransformers(layers=0)
