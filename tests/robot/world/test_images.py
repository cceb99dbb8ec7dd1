"""Pictures as latent frames."""

import dataclasses

import pytest
import torch
from wams import job

from flowrl.config import instantiate
from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import describe
from flowrl.train.grids import from_png
from robot.learning import TwoWays
from robot.learning.encoders import SensorStats
from robot.normalise import NormStats
from robot.types import ActionSpec, Observation
from robot.world import (
    ConvolutionalVAE,
    ImageFrames,
    MixtureOfTransformers,
    StateFrames,
    WorldRecipe,
    imagine_episode,
    load_world_action,
    save_world_action,
)
from robot.world.vae import FrameVAE, VAERecipe, save_vae

SIZES = ConvolutionalVAE(patch=4, channels=(8,), latent_channels=2, groups=4)
STATS = {"picture": SensorStats(shape=(3, 8, 16)), "state": SensorStats(shape=(1,))}


@pytest.fixture
def file(tmp_path):
    """An untrained autoencoder of pictures with 2 x 4 latent cells, with statistics of its own."""
    torch.manual_seed(0)
    vae = SIZES.build((3, 8, 16))
    vae.latent_mean, vae.latent_std = torch.tensor([0.5, -1.0])[:, None, None], torch.tensor([2.0, 0.25])[:, None, None]
    save_vae(tmp_path / "vae.safetensors", VAERecipe(network=SIZES, shape=(3, 8, 16), sensor="picture"), vae.eval())
    return tmp_path / "vae.safetensors", vae


def test_one_token_per_cell_is_what_the_autoencoder_says_row_by_row(file):
    path, vae = file
    codec = ImageFrames(sensor="picture", vae=str(path)).build(STATS)
    assert (codec.tokens, codec.channels, codec.sensors) == (8, 2, ("picture",))
    frames = torch.rand(3, 5, 3, 8, 16)
    latents = codec.encode({"picture": frames})
    assert latents.shape == (3, 5, 8, 2)
    with torch.no_grad():
        raw = vae.network.encoder(torch.nn.functional.pixel_unshuffle(frames[2, 1][None], 4))[0, :2]
    expected = (raw - torch.tensor([0.5, -1.0])[:, None, None]) / torch.tensor([2.0, 0.25])[:, None, None]
    torch.testing.assert_close(latents[2, 1, 6], expected[:, 1, 2])  # token 6 is row 1, column 2


@pytest.mark.parametrize(("patch", "tokens", "channels"), [(1, 8, 2), (2, 2, 8)])
def test_latents_decode_to_what_the_autoencoder_decodes(file, patch, tokens, channels):
    path, vae = file
    codec = ImageFrames(sensor="picture", vae=str(path), patch=patch).build(STATS)
    assert (codec.tokens, codec.channels) == (tokens, channels)
    frames = torch.rand(2, 3, 3, 8, 16)
    found = codec.decode(codec.encode({"picture": frames}))["picture"]
    with torch.no_grad():
        expected = vae.decode(vae.encode(frames.flatten(0, 1))).unflatten(0, (2, 3))
    torch.testing.assert_close(found, expected)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_a_token_of_several_cells_holds_a_square_of_them(file):
    codec = ImageFrames(sensor="picture", vae=str(file[0]), patch=2).build(STATS)
    single = ImageFrames(sensor="picture", vae=str(file[0])).build(STATS)
    frames = {"picture": torch.rand(1, 1, 3, 8, 16)}
    cells = single.encode(frames)[0, 0].reshape(2, 4, 2)
    torch.testing.assert_close(codec.encode(frames)[0, 0, 1].reshape(2, 2, 2), cells[:, 2:].permute(2, 0, 1))


def test_a_world_action_model_holds_its_autoencoder_and_needs_no_other_file(file, tmp_path):
    latents = ImageFrames(sensor="picture", vae=str(file[0]), patch=2)
    recipe = WorldRecipe(
        latents=latents,
        network=MixtureOfTransformers(layers=1, video_width=8, action_width=8, heads=1, head_width=4),
        encoder=None,
        sensors=(("picture", (3, 8, 16)),),
        action=ActionSpec(names=("x",), control_rate_hz=10),
        frames=2,
        stride=1,
        observed=1,
        horizon=2,
        execute=1,
    )
    modules = recipe.build(STATS)
    stats = NormStats(torch.zeros(1), torch.ones(1))
    save_world_action(tmp_path / "world_action.safetensors", recipe, modules, stats)
    file[0].unlink()
    loaded = load_world_action(tmp_path / "world_action.safetensors")
    seen = Observation({"picture": torch.rand(2, 1, 3, 8, 16)})
    acted = [model.act(seen, torch.Generator().manual_seed(3)).values for model in (recipe.model(modules, stats), loaded)]
    assert torch.equal(*acted)


def test_what_a_model_file_keeps_builds_the_same_codec_without_weights(file):
    latents = ImageFrames(sensor="picture", vae=str(file[0]), patch=2)
    kept = latents.build(STATS).kept(latents)
    assert kept == dataclasses.replace(latents, vae=None, network=SIZES)
    assert instantiate(describe(kept)) == kept
    assert {name: value.shape for name, value in kept.build(STATS).state_dict().items()} == {
        name: value.shape for name, value in latents.build(STATS).state_dict().items()
    }
    states = StateFrames(vectors=("state",))
    assert states.build(STATS).kept(states) is states


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vae": "runs/x", "network": SIZES}, "give one of the two"),
        ({}, "ImageFrames needs a vae, such as runs/vae_pusht_images"),
        ({"vae": "runs/x", "patch": 0}, "ImageFrames.patch must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageFrames(sensor="picture", **fields)


def test_pictures_that_do_not_fit_are_refused(file, tmp_path):
    with pytest.raises(ConfigError, match=r"was trained on pictures \(3, 8, 16\), 'picture' shows \(3, 16, 16\); train one on these"):
        ImageFrames(sensor="picture", vae=str(file[0])).build({"picture": SensorStats(shape=(3, 16, 16))})
    with pytest.raises(ConfigError, match="patch=3 does not divide the 2 x 4 latent cells of 'picture'"):
        ImageFrames(sensor="picture", vae=str(file[0]), patch=3).build(STATS)
    with pytest.raises(ConfigError, match=r"expects pictures \(channel, height, width\) of the sensor 'state'"):
        ImageFrames(sensor="state", vae=str(file[0])).build(STATS)
    with pytest.raises(CheckpointError, match="there is no VAE of frames"):
        ImageFrames(sensor="picture", vae=str(tmp_path / "none")).build(STATS)


def test_frames_are_encoded_once_before_training_and_not_at_every_step(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_vae(tmp_path / "vae.safetensors", VAERecipe(network=SIZES, shape=(3, 16, 16), sensor="picture"), SIZES.build((3, 16, 16)).eval())
    frames = []
    encode = FrameVAE.encode
    monkeypatch.setattr(FrameVAE, "encode", lambda vae, pictures: frames.append(len(pictures)) or encode(vae, pictures))
    latents = ImageFrames(sensor="picture", vae=str(tmp_path / "vae.safetensors"), patch=2)
    lesson = job(tmp_path / "run", demonstrations=TwoWays(episodes=10, length=4), latents=latents).lesson()
    module = lesson.begin(torch.device("cpu"))
    assert sum(frames) == 10 * 4
    loss = lesson.loss(module, torch.arange(8), slice(0, 8), 0)
    loss.backward()
    assert sum(frames) == 10 * 4
    assert all(parameter.grad is not None for parameter in module.network.video.parameters())
    assert all(parameter.grad is None for parameter in lesson._modules.codec.parameters())


def test_a_run_on_pictures_trains_acts_and_draws(tmp_path, quick_runs):
    torch.manual_seed(0)
    save_vae(tmp_path / "vae.safetensors", VAERecipe(network=SIZES, shape=(3, 16, 16), sensor="picture"), SIZES.build((3, 16, 16)).eval())
    latents = ImageFrames(sensor="picture", vae=str(tmp_path / "vae.safetensors"), patch=2)
    summary = job(tmp_path / "run", demonstrations=TwoWays(episodes=10), latents=latents, steps=2).run()
    (tmp_path / "vae.safetensors").unlink()
    model = load_world_action(summary.checkpoint)
    found = imagine_episode(model, TwoWays(episodes=1).load().episodes[0], steps=(1,), generator=torch.Generator().manual_seed(0))
    assert found.imagined["picture"].shape == (1, 2, 3, 16, 16)
    assert 0 <= float(found.imagined["picture"].min()) <= float(found.imagined["picture"].max()) <= 1
    assert from_png(tmp_path / "run" / "imagined.png").shape[0] == 3
