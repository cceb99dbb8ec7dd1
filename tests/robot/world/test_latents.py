"""States as latent frames."""

import pytest
import torch

from flowrl.errors import ConfigError
from robot.learning.encoders import SensorStats
from robot.world.latents import StateFrames

STATS = {
    "agent": SensorStats(shape=(2,), low=torch.tensor([0.0, 10.0]), high=torch.tensor([4.0, 20.0])),
    "points": SensorStats(shape=(2, 2), low=torch.tensor([[0.0, 0.0], [2.0, 1.0]]), high=torch.tensor([[6.0, 1.0], [8.0, 3.0]])),
    "image": SensorStats(shape=(3, 8, 8)),
}


def test_latents_by_hand():
    """agent (1, 20) → (−0.5, 1). Points: middle (4, 1.5), one scale of 4: (0, 0) → (−1, −0.375), (8, 3) → (1, 0.375)."""
    codec = StateFrames(vectors=("agent",), keypoints=("points",), tokens=2).build(STATS)
    frames = {"agent": torch.tensor([[[1.0, 20.0]]]), "points": torch.tensor([[[[0.0, 0.0], [8.0, 3.0]]]])}
    expected = torch.tensor([[[[-0.5, 1.0, -1.0], [-0.375, 1.0, 0.375]]]])
    torch.testing.assert_close(codec.encode(frames), expected)
    assert (codec.tokens, codec.channels, codec.sensors) == (2, 3, ("agent", "points"))


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_decoding_gives_back_what_was_encoded(tokens):
    codec = StateFrames(vectors=("agent",), keypoints=("points",), tokens=tokens).build(STATS)
    frames = {"agent": torch.rand(2, 5, 2), "points": torch.rand(2, 5, 2, 2)}
    latents = codec.encode(frames)
    assert latents.shape == (2, 5, codec.tokens, codec.channels)
    for name, found in codec.decode(latents).items():
        torch.testing.assert_close(found, frames[name])


def test_frames_of_another_shape_are_refused():
    codec = StateFrames(vectors=("agent",), keypoints=("points",)).build(STATS)
    with pytest.raises(ValueError, match=r"a frame of points must be \(2, 2\), got \(batch, time, …\) = \(1, 1, 3, 2\)"):
        codec.encode({"agent": torch.zeros(1, 1, 2), "points": torch.zeros(1, 1, 3, 2)})


def test_foreign_sensors_are_refused():
    with pytest.raises(ConfigError, match="'gripper'"):
        StateFrames(vectors=("gripper",)).build(STATS)
    with pytest.raises(ConfigError, match=r"a vector \(feature,\) of the sensor 'image'"):
        StateFrames(vectors=("image",)).build(STATS)
    with pytest.raises(ValueError, match="sensors with names"):
        StateFrames()
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        StateFrames(vectors=("agent",), tokens=0)
