"""Pretraining: the loss falls, what is saved is what was trained, and bad settings are refused before any work."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from flowrl.config import instantiate, load_config
from flowrl.errors import ConfigError, NonFiniteError
from flowrl.flow import flow_matching_loss, logit_normal_times
from flowrl.models.sd3 import StableDiffusion3
from flowrl.models.tiny import TinySD3
from flowrl.train import AdamW, Pretrain
from flowrl.train.data import CaptionedImages, Digits, digit_scans
from flowrl.train.metrics import MetricsLog
from flowrl.train.pretrain import _draw_captions
from flowrl.train.stages import AutoencoderStage, FlowStage

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "the", "digit")
SIZES = {"image_size": 16, "latent_channels": 1, "vae_channels": (4, 8), "layers": 2, "heads": 2}


def job(folder, **fields):
    """A job of seconds, on the real digits."""
    parts = {
        "model": TinySD3(vocabulary=WORDS, **SIZES),
        "data": Digits(captions=("the digit {}",)),
        "autoencoder": AutoencoderStage(steps=20, batch_size=32, log_every=5),
        "flow": FlowStage(steps=40, batch_size=32, log_every=5),
        "save_to": str(folder / "pipeline"),
        "run_dir": str(folder / "run"),
        "sample_steps": 1,
    }
    return Pretrain(**(parts | fields))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    job(folder).run()
    return folder


def lines_of(folder, stage):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def test_both_losses_fall(trained):
    autoencoder, flow = ([line["loss"] for line in lines_of(trained, stage)] for stage in ("autoencoder", "flow"))
    assert autoencoder[-1] < 0.7 * autoencoder[0]
    # The best constant velocity, 0, has the loss E|noise − data|² = 2 per dimension, because latents have mean 0 and std 1.
    assert flow[0] > 1.5
    assert flow[-1] < 1.4


def test_metrics_have_a_line_every_few_steps_with_the_learning_rate_of_the_cosine(trained):
    lines = lines_of(trained, "flow")
    assert [line["update"] for line in lines] == list(range(5, 41, 5))
    # 20 steps of warm-up to 2e-3, then half a cosine over the other 20
    assert [line["lr"] for line in lines] == pytest.approx(
        [2e-3 * x for x in (0.25, 0.5, 0.75, 1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0.0)], abs=1e-9
    )


def latents_of(model, images):
    vae = model.pipeline.vae
    with torch.no_grad():
        return (vae.encode(2 * images - 1).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def test_latents_of_the_training_pictures_have_mean_0_and_std_1_in_the_saved_pipeline(trained):
    model = StableDiffusion3(path=str(trained / "pipeline"), max_sequence_length=1).load("cpu")
    latents = latents_of(model, digit_scans("generator", 16)[0])
    assert latents.shape == (800, *model.state_shape) == (800, 1, 8, 8)
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_the_transformer_trains_on_latents_of_mean_0_and_std_1(tmp_path):
    images, _ = digit_scans("test", 16)
    vae = TinySD3(vocabulary=WORDS, **SIZES).build().vae
    log = MetricsLog(tmp_path, keep_before=0, keep_evaluation=False)
    latents = job(tmp_path, autoencoder=AutoencoderStage(steps=0))._train_autoencoder(vae, 2 * images - 1, log)
    torch.testing.assert_close(torch.stack(torch.std_mean(latents)), torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_the_shipped_pipeline_decodes_what_it_encodes_from_unseen_scans():
    model = StableDiffusion3(path="assets/models/digits_sd3", max_sequence_length=1).load("cpu")
    images, _ = digit_scans("test", 16)
    error = (model.decode(latents_of(model, images)) - images).square().mean().sqrt()
    assert error < 0.03  # root mean square, pictures in [0, 1]


def test_samples_are_a_png_of_ten_prompts_by_ten(trained):
    with Image.open(trained / "run" / "samples.png") as picture:
        assert picture.size == (10 * 16 * 4, 10 * 16 * 4)


def test_the_same_seed_gives_the_same_pipeline_and_another_seed_another(tmp_path):
    short = {
        "autoencoder": AutoencoderStage(steps=0),
        "flow": FlowStage(steps=2, batch_size=8),
    }  # so the second stage alone must use the seed
    networks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(networks))  # the global state must not matter
        job(tmp_path / name, seed=seed, **short).run()
        networks.append(StableDiffusion3(path=str(tmp_path / name / "pipeline")).load("cpu").module.state_dict())
    same, other = networks[1], networks[2]
    assert all(torch.equal(tensor, same[name]) for name, tensor in networks[0].items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in networks[0].items())


def test_the_average_of_the_weights_is_what_is_saved(tmp_path):
    def saved(name, steps, decay):
        stage = FlowStage(steps=steps, batch_size=8, ema_decay=decay, optimizer=AdamW(lr=0.01, schedule="constant"))
        folder = job(tmp_path / name, autoencoder=AutoencoderStage(steps=0), flow=stage).run()
        return StableDiffusion3(path=str(folder)).load("cpu").module.proj_out.weight.detach()

    first, second, third = (saved(f"last{steps}", steps, 1e-12) for steps in (1, 2, 3))  # without memory: the weights of that step
    # The decay warms up as (1 + n)/(10 + n): 0 at the first step, then 2/11, then 3/12.
    expected = 3 / 12 * (2 / 11 * first + 9 / 11 * second) + 9 / 12 * third
    torch.testing.assert_close(saved("average", 3, 0.9), expected, atol=1e-6, rtol=1e-5)
    assert (third - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("drop", "expected"), [(0.0, 0), (0.1, 1000), (0.5, 5000)])
def test_the_given_share_of_captions_is_dropped_and_wordings_are_equally_likely(drop, expected):
    texts = _draw_captions([("a", "b", "c")] * 10_000, drop, torch.Generator().manual_seed(0))
    assert texts.count("") == pytest.approx(expected, abs=150)  # three standard deviations of Binomial(10000, 0.5)
    for text in "abc":
        assert texts.count(text) == pytest.approx((10_000 - expected) / 3, abs=150)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": TinySD3(vocabulary=WORDS, **(SIZES | {"image_size": 32}))}, r"makes 32 x 32 pictures, the data are \(16, 16\)"),
        ({"model": TinySD3(vocabulary=("digit",), **SIZES)}, "list its words in the model's vocabulary, or raise text_length"),
    ],
    ids=["picture size", "caption length"],
)
def test_data_that_do_not_fit_the_pipeline_are_refused_before_training(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, **fields).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowStage(steps=-1), "steps >= 0, batch_size >= 1 and log_every >= 1, got steps=-1"),
        (lambda: FlowStage(prompt_drop=1.0), r"prompt_drop must lie in \[0, 1\), got 1.0"),
        (lambda: FlowStage(max_grad_norm=0.0), "max_grad_norm must be > 0, got 0.0"),
        (lambda: AutoencoderStage(kl_weight=float("nan")), "kl_weight must be >= 0, got nan"),
    ],
    ids=["steps", "drop", "norm", "kl"],
)
def test_bad_numbers_of_a_stage_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    class Broken:
        def load(self):
            images, _ = digit_scans("test", 16)
            images[3] = float("nan")
            return CaptionedImages(images, (("the digit one",),) * len(images))

    with pytest.raises(NonFiniteError, match="the loss of autoencoder step 1 is nan"):
        job(tmp_path, data=Broken(), autoencoder=AutoencoderStage(steps=3, batch_size=197 * 4)).run()
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize("name", ["image/digits_pretrain", "smoke/digits_pretrain"])
def test_bundled_pretraining_configs_build(name):
    assert isinstance(instantiate(load_config(name)), Pretrain)


def test_the_smoke_config_runs_and_may_run_again_in_the_same_folder(tmp_path):
    short = replace(instantiate(load_config("smoke/digits_pretrain")), save_to=str(tmp_path / "pipeline"), run_dir=str(tmp_path / "run"))
    for _ in range(2):
        assert short.run() == tmp_path / "pipeline"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["autoencoder", "flow"]


def test_the_shipped_pipeline_predicts_the_velocity_of_unseen_scans_better_with_their_own_captions():
    model = StableDiffusion3(path="assets/models/digits_sd3", max_sequence_length=1).load("cpu")
    data = Digits(part="test").load()
    latents = latents_of(model, data.images)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        noise, t = torch.randn(latents.shape, generator=generator), logit_normal_times(len(latents), generator)
        captions = [texts[0] for texts in data.captions]
        losses = [
            flow_matching_loss(model.field(), latents, noise, t, model.encode(texts)).mean()
            for texts in (captions, captions[1:] + captions[:1])
        ]
    assert losses[0] < 1.0  # 2 is the loss of the velocity 0
    assert losses[0] < losses[1] - 0.01
