"""The autoencoder of frames: what it learns, what it keeps, and what it refuses."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowrl.config import instantiate, load_config
from flowrl.errors import CheckpointError, ConfigError
from flowrl.train import AdamW
from flowrl.train.grids import from_png
from robot.learning import TwoWays
from robot.learning.examples import seen_at
from robot.world import ConvolutionalVAE, ImageVAE, load_vae
from robot.world.vae import VAES, VAERecipe, save_vae

SIZES = ConvolutionalVAE(patch=4, channels=(16,), latent_channels=2, groups=4)


def job(run_dir, **fields):
    defaults = {
        "demonstrations": TwoWays(episodes=60, length=2),
        "sensor": "picture",
        "network": SIZES,
        "steps": 70,
        "batch_size": 12,
        "optimizer": AdamW(lr=4.0e-3, schedule="cosine", warmup_steps=10),
        "ema_decay": 0.9,
        "log_every": 50,
        "validate_every": 1000,
        "checkpoint_every": 1000,
    }
    return ImageVAE(run_dir=str(run_dir), **(defaults | fields))


def fresh_accelerate():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("robot.learning.report.write_curve", lambda record, curves: None)
        summary = job(folder).run()
    fresh_accelerate()
    return summary


@pytest.fixture
def small(tmp_path):
    """An untrained file."""
    torch.manual_seed(0)
    vae = SIZES.build((3, 16, 16)).eval()
    save_vae(tmp_path / "vae.safetensors", VAERecipe(network=SIZES, shape=(3, 16, 16), sensor="picture"), vae, {"steps": 3})
    return tmp_path / "vae.safetensors", vae


def unseen():
    return torch.stack([torch.from_numpy(seen_at(state)["picture"]) for state in torch.linspace(-0.93, 0.93, 41).tolist()])


def test_a_trained_autoencoder_gives_back_unseen_pictures_ten_times_better_than_the_mean_picture(trained):
    vae, pictures = load_vae(trained.checkpoint), unseen()
    back = vae.decode(vae.encode(pictures))
    assert back.shape == pictures.shape
    assert 0 <= float(back.min()) <= float(back.max()) <= 1
    ratio = float((back - pictures).square().mean() / (pictures - pictures.mean(0)).square().mean())
    assert ratio < 0.1
    assert 0 < trained.measured["eval/unexplained"] < 0.1


def test_latents_of_the_demonstrations_have_mean_0_and_variance_1_in_every_channel(trained):
    vae = load_vae(trained.checkpoint)
    frames = [episode.observations["picture"] for episode in TwoWays(episodes=60, length=2).load().episodes]
    pictures = torch.cat([torch.from_numpy(part) for part in frames]).permute(0, 3, 1, 2).float() / 255
    latents = vae.encode(pictures)
    assert latents.shape == (120, 2, 4, 4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), atol=0.1, rtol=0)


def test_a_run_leaves_its_origin_a_page_and_pictures_of_both_kinds(trained):
    origin = VAES.read_training(trained.run_dir)
    assert (origin["steps"], origin["data"]["episodes"], origin["data"]["held_out"]) == (70, 60, 6)
    assert VAES.read_recipe(trained.run_dir) == VAERecipe(network=SIZES, shape=(3, 16, 16), sensor="picture", name="run")
    page = trained.report.read_text(encoding="utf-8")
    assert "autoencoder of frames" in page
    assert "Unexplained share" in page
    drawn = from_png(trained.run_dir / "reconstructions.png")
    assert drawn.shape[1] > 2 * 112  # two rows of pictures, enlarged
    assert drawn.shape[2] > 8 * 112


def test_statistics_by_hand(small):
    """Two pictures, all 0 and all 255: mean ½ everywhere, spread ½."""
    vae = small[1]
    pictures = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 255.0)]).byte()
    vae.look_at(pictures)
    torch.testing.assert_close(vae.mean, torch.full((3, 16, 16), 0.5))
    torch.testing.assert_close(vae.spread, torch.tensor(0.5))
    vae.look_at(pictures[:1])
    assert vae.spread > 0  # pictures that never change


def test_the_loss_is_the_squared_error_of_standardised_pictures_plus_the_divergence(small):
    """At noise 0 and weight 0, the error of the decoded mean; the divergence is measured by hand from mean and variance."""
    vae, pictures = small[1], unseen()[:5]
    vae.look_at((pictures * 255).byte())
    none = torch.zeros(5, 2, 4, 4)
    with torch.no_grad():
        error, whole = (vae(pictures, none, weight) for weight in (0.0, 0.5))
        raw = vae.encode(pictures)  # the latents' statistics are still 0 and 1
        back = (vae.network.decode(raw).sample.reshape(5, 3, 4, 4, 4, 4).permute(0, 1, 4, 2, 5, 3)).reshape(5, 3, 16, 16)
        folded = ((pictures - vae.mean) / vae.spread).reshape(5, 3, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4).reshape(5, 48, 4, 4)
        mean, log_variance = vae.network.encoder(folded).chunk(2, dim=1)
    torch.testing.assert_close(raw, mean)
    torch.testing.assert_close(error, (back - (pictures - vae.mean) / vae.spread).square().mean())
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    torch.testing.assert_close(whole - error, 0.5 * divergence, rtol=1e-4, atol=1e-6)


def test_a_file_comes_back_bit_for_bit_and_frozen(small):
    path, vae = small
    before = torch.get_rng_state()
    loaded = load_vae(path.parent)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded.encode(unseen()), vae.encode(unseen()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert VAES.read_training(path) == {"steps": 3}


@pytest.mark.parametrize("size", [0, 500, -1], ids=["empty", "in its header", "one byte short"])
def test_a_truncated_file_is_refused(size, small):
    small[0].write_bytes(small[0].read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"vae.safetensors is truncated or no safetensors file .*copy it again"):
        load_vae(small[0])


def test_a_file_that_was_edited_is_refused(small):
    path = small[0]
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["flowrl.vae"])
    tensors = load_file(path)
    tensors["vae.latent_std"].mul_(2)
    save_file(tensors, path, metadata={"flowrl.vae": json.dumps(card)})
    with pytest.raises(CheckpointError, match="was altered after it was written"):
        load_vae(path)
    with pytest.raises(CheckpointError, match=r"there is no VAE of frames .*give a vae\.safetensors"):
        load_vae(path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 3}, r"groups must divide every entry of channels, got 3 and \(32, 64\)"),
        ({"channels": ()}, "ConvolutionalVAE.channels must be at least 1"),
        ({"latent_channels": 0}, "ConvolutionalVAE.latent_channels must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalVAE(**fields)


def test_pictures_that_do_not_divide_into_cells_are_refused():
    assert ConvolutionalVAE(patch=8, channels=(32, 64, 64)).cell == 32
    with pytest.raises(ConfigError, match="16 x 84 pixels do not divide into latent cells of 16 x 16; record them at a multiple of 16"):
        ConvolutionalVAE(patch=8).build((3, 16, 84))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensor": "state"}, r"needs pictures, uint8 \(height, width, channel\); 'state' shows \(1,\)"),
        ({"sensor": "picturs"}, "'picturs', which the demonstrations do not have; did you mean 'picture'"),
    ],
)
def test_what_is_no_picture_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, **fields).lesson()


def test_a_negative_weight_of_the_divergence_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="kl_weight must be >= 0, got -1"):
        job(tmp_path, kl_weight=-1.0)


def test_the_smoke_config_trains_resumes_and_ends_like_a_run_in_one_go(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("robot.learning.report.write_curve", lambda record, curves: None)

    def run(folder, steps, **fields):
        place = f"run_dir={tmp_path / folder}"
        steady = "optimizer={target: flowrl.train.AdamW, lr: 0.001}"
        instantiate(load_config("smoke/robot_vae", [place, f"steps={steps}", steady])).run(**fields)
        fresh_accelerate()

    run("parts", 2)
    run("parts", 4, resume=True)
    run("whole", 4)
    parts, whole = (load_file(tmp_path / folder / "vae.safetensors") for folder in ("parts", "whole"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
