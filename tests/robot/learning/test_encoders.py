"""Encoders: normalisation by the demonstrations' range, order of features, crops, and sensors that do not fit."""

import pytest
import torch

from flowrl.errors import ConfigError
from robot.learning import ImageEncoder, KeypointEncoder, SensorStats, StateEncoder
from robot.learning.images import cropped
from robot.types import Observation

STATS = {
    "joints": SensorStats(shape=(2,), low=torch.tensor([0.0, -10.0]), high=torch.tensor([4.0, 10.0])),
    "still": SensorStats(shape=(1,), low=torch.tensor([7.0]), high=torch.tensor([7.0])),
    "points": SensorStats(shape=(2, 2), low=torch.tensor([[0.0, 2.0], [1.0, 2.0]]), high=torch.tensor([[4.0, 4.0], [8.0, 3.0]])),
    "camera": SensorStats(shape=(3, 12, 16)),
}


def test_vectors_are_scaled_to_the_range_of_the_data_sensor_by_sensor_oldest_frame_first():
    encoder = StateEncoder(sensors=("joints", "still"), history=2).build(STATS)
    joints = torch.tensor([[[0.0, 0.0], [4.0, 5.0], [1.0, -10.0]]])  # three frames, of which it takes the last two
    features = encoder(Observation({"joints": joints, "still": torch.tensor([[[7.0], [7.0], [8.0]]])}))
    torch.testing.assert_close(features, torch.tensor([[1.0, 0.5, -0.5, -1.0, 0.0, 1.0]]))
    assert (encoder.sensors, encoder.history, encoder.width) == (("joints", "still"), 2, 6)


def test_keypoints_share_one_scale_so_that_shapes_keep_their_form():
    """x spans 0 … 8 and y 2 … 4 over all points: middles 4 and 3, and the larger half range, 4, for both."""
    encoder = KeypointEncoder(keypoints=("points",), vectors=("joints",)).build(STATS)
    points = torch.tensor([[[[8.0, 3.0], [4.0, 7.0]]]])
    features = encoder(Observation({"points": points, "joints": torch.tensor([[[2.0, 10.0]]])}))
    torch.testing.assert_close(features, torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    "config",
    [
        StateEncoder(sensors=("joints",), width=6, history=2),
        KeypointEncoder(keypoints=("points",), width=6, history=2),
        ImageEncoder(cameras=("camera",), vectors=("joints",), width=6, channels=(4, 4), points=2, history=2, crop=10),
    ],
    ids=lambda config: type(config).__name__,
)
def test_features_have_the_width_that_the_encoder_says_and_reach_every_parameter(config):
    encoder = config.build(STATS)
    seen = Observation({name: torch.rand(3, 2, *STATS[name].shape) for name in config.needs})
    features = encoder(seen)
    assert features.shape == (3, encoder.width)
    features.square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in encoder.parameters())


def test_a_camera_reports_where_a_bright_dot_is():
    """One channel that passes brightness on, strongly: the softmax sits on the dot, and its place is known by hand."""
    encoder = ImageEncoder(cameras=("camera",), channels=(1,), points=1, width=2).build({"camera": SensorStats(shape=(1, 9, 9))})
    camera = encoder.cameras[0]
    convolution, head = camera.layers[0], camera.layers[-1]
    for parameter in encoder.parameters():
        parameter.data.zero_()
    convolution.weight.data[0, 0, 1, 1] = 1.0
    camera.layers[1].weight.data.fill_(1.0)  # group norm
    head.weight.data.fill_(50.0)
    pictures = torch.zeros(2, 1, 9, 9)
    pictures[0, 0, 2, 8], pictures[1, 0, 4, 0] = 1.0, 1.0  # of the 5 x 5 map: row 1, column 4; row 2, column 0
    torch.testing.assert_close(camera(pictures), torch.tensor([[-0.5, 1.0], [0.0, -1.0]]), rtol=0, atol=1e-3)


def test_crops_are_the_middle_or_where_the_draws_say_and_alike_in_all_frames():
    pictures = torch.arange(2 * 2 * 1 * 4 * 5).reshape(2, 2, 1, 4, 5).float()
    torch.testing.assert_close(cropped(pictures, 2, None), pictures[..., 1:3, 1:3])
    corners = torch.tensor([[0.0, 0.99], [0.99, 0.3]])  # room for 3 rows and 4 columns: (0, 3) and (2, 1)
    found = cropped(pictures, 2, corners)
    torch.testing.assert_close(found[0], pictures[0, ..., 0:2, 3:5])
    torch.testing.assert_close(found[1], pictures[1, ..., 2:4, 1:3])


def test_an_encoder_crops_at_random_only_where_it_is_given_draws():
    encoder = ImageEncoder(cameras=("camera",), channels=(4,), points=2, width=4, crop=8).build(STATS)
    seen = Observation({"camera": torch.rand(2, 1, 3, 12, 16)})
    assert encoder.draws == 2
    torch.testing.assert_close(encoder(seen), encoder(seen), rtol=0, atol=0)
    middle = torch.full((2, 2), 0.49)  # room for 5 rows and 9 columns: (2, 4), the middle
    torch.testing.assert_close(encoder(seen, middle), encoder(seen))
    assert not torch.allclose(encoder(seen, torch.zeros(2, 2)), encoder(seen))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StateEncoder(sensors=("torques",)), "needs the sensor 'torques', the demonstrations have camera, joints, points, still"),
        (StateEncoder(sensors=("camera",)), r"expects a vector \(feature,\) of the sensor 'camera', its frames are \(3, 12, 16\)"),
        (KeypointEncoder(keypoints=("joints",)), r"expects keypoints \(point, coordinate\) of the sensor 'joints'"),
        (ImageEncoder(cameras=("points",)), r"expects pictures \(channel, height, width\) of the sensor 'points'"),
        (ImageEncoder(cameras=("camera",), crop=13), r"crop=13 does not fit into the pictures of 'camera', which are \(12, 16\)"),
    ],
)
def test_sensors_that_do_not_fit_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        config.build(STATS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StateEncoder(sensors=()), r"needs sensors with names of their own, got \(\)"),
        (lambda: StateEncoder(sensors=("a", "a")), "names of their own"),
        (lambda: StateEncoder(sensors=("a",), history=0), "history >= 1 and width >= 1 or null, got 0 and None"),
        (lambda: ImageEncoder(cameras=("a",), crop=0), "crop must be at least 1 pixel, got 0"),
        (lambda: ImageEncoder(cameras=("a",), channels=()), "ImageEncoder.channels must be at least 1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
