"""Stable Diffusion 1.5 and XL against diffusers' own pipelines with a DDIM scheduler, and their conventions."""

import json
import shutil

import pytest
import torch
from harness import check_training, ode_samples, standard_noise

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import FlowSDE
from flowrl.models import AutoModel, LoRA, StableDiffusion, StableDiffusionXL
from flowrl.models.tiny import tiny_sd, tiny_sdxl
from flowrl.testing import check_field
from samplers import DiffusionGrid, ExplicitGrid, ODESampler, SingularStochasticSampler

PROMPTS = ["a photo of red square", "green circle"]
BUILD = {StableDiffusion: tiny_sd, StableDiffusionXL: tiny_sdxl}
KINDS = ["epsilon", "v_prediction"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """``folder_of(source, kind)``: a saved pipeline that predicts so."""
    folders = {}
    for source, build in BUILD.items():
        for kind in KINDS:
            folders[source, kind] = tmp_path_factory.mktemp(f"{build.__name__}_{kind}")
            build(prediction_type=kind).save_pretrained(folders[source, kind])
    return lambda source, kind="epsilon": folders[source, kind]


def ddim_pipeline(folder, source, scheduler=(), **parts):
    import diffusers

    absent = {"safety_checker": None} if source is StableDiffusion else {}
    pipeline = getattr(diffusers, source.pipeline_name).from_pretrained(folder, **absent, **parts)
    settings = {"clip_sample": False, "set_alpha_to_one": True, **dict(scheduler)}
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, noise, *, guidance_scale=1.0, output_type="latent", steps=4, **arguments):
    fixed = {"num_inference_steps": steps, "eta": 0.0, "latents": noise.clone(), "guidance_scale": guidance_scale}
    return torch.as_tensor(pipeline(PROMPTS, **fixed, output_type=output_type, **arguments).images)


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["without guidance", "with guidance"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", BUILD)
def test_the_ode_sampler_gives_the_latents_of_the_ddim_pipeline_to_3e_6_of_their_size(folder_of, source, kind, guidance):
    model = source(path=str(folder_of(source, kind)), guidance_scale=guidance).load("cpu")
    expected = drawn(ddim_pipeline(folder_of(source, kind), source), noise := standard_noise(model, 2), guidance_scale=guidance)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=3e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("source", BUILD)
def test_a_negative_prompt_and_another_size_are_those_of_the_pipeline(folder_of, source):
    model = source(path=str(folder_of(source)), guidance_scale=5.0, negative_prompt="green", height=24, width=8).load("cpu")
    assert model.state_shape == (4, 12, 4)
    pipeline, noise = ddim_pipeline(folder_of(source), source), standard_noise(model, 2)
    expected = drawn(pipeline, noise, guidance_scale=5.0, negative_prompt=["green"] * 2, height=24, width=8)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=3e-6 * float(expected.abs().max()), rtol=0)


def test_original_size_and_crop_reach_the_network_as_in_the_pipeline(folder_of):
    fields = {"original_size": (48, 32), "crop_top_left": (4, 6)}
    model, plain = (StableDiffusionXL(path=str(folder_of(StableDiffusionXL)), **some).load("cpu") for some in (fields, {}))
    assert model.encode(PROMPTS).tensors["time_ids"].tolist() == [[48, 32, 4, 6, 16, 16]] * 2
    noise = standard_noise(model, 2)
    pipeline = ddim_pipeline(folder_of(StableDiffusionXL), StableDiffusionXL)
    expected = drawn(pipeline, noise, original_size=(48, 32), crops_coords_top_left=(4, 6))
    samples = ode_samples(model, PROMPTS, noise)
    torch.testing.assert_close(samples, expected, atol=3e-6 * float(expected.abs().max()), rtol=0)
    assert (samples - ode_samples(plain, PROMPTS, noise)).abs().max() > 1e-3


@pytest.mark.parametrize("source", BUILD)
def test_decoded_pictures_are_those_of_the_pipeline_to_2e_5(folder_of, source):
    model = source(path=str(folder_of(source)), guidance_scale=5.0).load("cpu")
    noise = standard_noise(model, 2)
    expected = drawn(ddim_pipeline(folder_of(source), source), noise, guidance_scale=5.0, output_type="np").permute(0, 3, 1, 2)
    pictures = model.decode(ode_samples(model, PROMPTS, noise))
    assert pictures.shape == (2, 3, 16, 16)
    torch.testing.assert_close(pictures, expected, atol=2e-5, rtol=0)


def test_where_the_last_alpha_is_not_1_ddim_stops_short_of_the_data_by_the_noise_level_of_timestep_0(folder_of):
    model = StableDiffusion(path=str(folder_of(StableDiffusion))).load("cpu")
    alpha_bar, noise = 1 - 0.00085, standard_noise(model, 2)
    stop = (1 - alpha_bar) ** 0.5 / (alpha_bar**0.5 + (1 - alpha_bar) ** 0.5)
    assert stop == pytest.approx(0.0283, abs=1e-4)
    sampler = ODESampler(grid=ExplicitGrid(values=(*model.default_times(4)[:-1].tolist(), stop)))
    ours = sampler.sample(model.field(), model.initial_state(noise, sampler.initial_time), model.encode(PROMPTS)).final
    pipeline = ddim_pipeline(folder_of(StableDiffusion), StableDiffusion, {"set_alpha_to_one": False})
    expected = drawn(pipeline, noise) / (alpha_bar**0.5 + (1 - alpha_bar) ** 0.5)
    torch.testing.assert_close(ours, expected, atol=3e-6 * float(expected.abs().max()), rtol=0)


def test_a_model_of_zero_terminal_snr_starts_from_almost_pure_noise_and_follows_ddim_to_1e_3(folder_of, tmp_path):
    settings = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    tiny_sdxl(prediction_type="v_prediction", **settings).save_pretrained(tmp_path)
    model = StableDiffusionXL(path=str(tmp_path)).load("cpu")
    assert float(model.default_times(4)[0]) == pytest.approx(1 / (1 + 2**-12), abs=1e-7)
    noise = standard_noise(model, 2)
    expected = drawn(ddim_pipeline(tmp_path, StableDiffusionXL), noise)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(("source", "steps"), [(StableDiffusion, 4), (StableDiffusionXL, 30), (StableDiffusion, 1)])
def test_default_times_are_those_of_the_timesteps_whatever_the_scheduler(folder_of, source, steps):
    model = source(path=str(folder_of(source))).load("cpu")
    steps_of = 1000 // steps
    taken = torch.tensor([1 + steps_of * (steps - 1 - index) for index in range(steps)])
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    odds = (1 / (1 - beta).cumprod(0) - 1).sqrt()[taken]  # noise to data
    expected = torch.cat([odds / (1 + odds), torch.zeros(1)]).float()
    torch.testing.assert_close(model.default_times(steps), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(DiffusionGrid(steps=steps).times().float(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("source", BUILD)
def test_the_field_keeps_the_contract_up_to_the_schedules_largest_noise_level(folder_of, source):
    model = source(path=str(folder_of(source)), guidance_scale=3.0).load("cpu")
    # Near noise 1/a enlarges rounding fifteenfold.
    check_field(model.field(), standard_noise(model, 3), model.encode([*PROMPTS, "cat"]), start=0.93, tolerance=1e-4)


def test_gradient_checkpointing_changes_no_velocity_and_no_gradient(folder_of):
    gradients = []
    for checkpointing in (False, True):
        source = StableDiffusion(path=str(folder_of(StableDiffusion)), lora=LoRA(rank=2, alpha=2), gradient_checkpointing=checkpointing)
        model = source.load("cpu")
        loss = model.field()(standard_noise(model, 2), 0.7, model.encode(PROMPTS)).square().mean()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.trainable_parameters())])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=0, rtol=1e-5)


def test_half_precision_computes_the_change_of_coordinates_in_float32(folder_of):
    exact, half = (StableDiffusion(path=str(folder_of(StableDiffusion)), dtype=dtype).load("cpu") for dtype in ("float32", "bfloat16"))
    x, condition = standard_noise(exact, 2), exact.encode(PROMPTS)
    velocity, expected = (model.field()(x, 0.5, condition) for model in (half, exact))
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        (StableDiffusion, {"height": 15}, "multiples of 2 for .*, got 15 x 16"),
        (StableDiffusionXL, {"original_size": (0, 8)}, r"original_size must be at least 1 x 1 .*, got \(0, 8\) and \(0, 0\)"),
        (StableDiffusionXL, {"crop_top_left": (0, -1)}, r"crop_top_left at least 0, 0, got None and \(0, -1\)"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(folder_of, source, fields, message):
    with pytest.raises(ConfigError, match=message):
        source(path=str(folder_of(source)), **fields).load("cpu")


def test_more_steps_than_timesteps_are_refused(folder_of):
    model = StableDiffusion(path=str(folder_of(StableDiffusion))).load("cpu")
    with pytest.raises(ValueError, match="steps must be at least 1 and at most 1000, got 1001"):
        model.default_times(1001)


def test_times_above_the_schedule_are_refused(folder_of):
    model = StableDiffusion(path=str(folder_of(StableDiffusion))).load("cpu")
    with pytest.raises(
        ValueError, match=r"largest noise level is 0\.93\d+, got t = 1\.0+; start the grid there, as samplers.DiffusionGrid does"
    ):
        model.field()(standard_noise(model, 1), 1.0, model.encode(["cat"]))


def test_a_scheduler_without_betas_is_refused(folder_of, tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = tiny_sd()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has a FlowMatchEulerDiscreteScheduler, which names no betas; StableDiffusion reads"):
        StableDiffusion(path=str(tmp_path)).load("cpu")


def test_a_safety_checker_is_not_loaded(folder_of, tmp_path):
    folder = shutil.copytree(folder_of(StableDiffusion), tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    checked = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index | checked))  # and no folder of that name
    assert StableDiffusion(path=str(folder)).load("cpu").pipeline.safety_checker is None


@pytest.mark.parametrize("source", BUILD)
def test_two_updates_with_a_lora_and_with_all_weights_leave_what_diffusers_loads(folder_of, source, tmp_path):
    kind = "epsilon" if source is StableDiffusion else "v_prediction"
    adapter = AutoModel(path=str(folder_of(source, kind)), guidance_scale=5.0)
    assert isinstance(adapter, source)

    def load_pipeline(**parts):
        return ddim_pipeline(folder_of(source, kind), source, **parts)

    def draw(pipeline, noise):
        return drawn(pipeline, noise, guidance_scale=5.0)

    sampler = SingularStochasticSampler(
        grid=DiffusionGrid(steps=4), dynamics=FlowSDE(noise_level=0.7), group_size=2, sde_indices=(0, 1), strides=(1, 2)
    )
    check_training(adapter, tmp_path, PROMPTS, draw, load_pipeline=load_pipeline, sampler=sampler, tolerance=5e-5)
