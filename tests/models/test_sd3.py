"""The adapter against diffusers' own pipeline, and its conventions."""

import pytest
import torch

from flowrl.models import LoRA
from samplers import ExplicitGrid, ODESampler

PROMPTS = ["a photo of red square", "green circle", "a zebra?"]


def from_pipeline(pipeline, noise, **arguments):
    fixed = {"num_inference_steps": 4, "latents": noise.clone(), "max_sequence_length": 3}
    return torch.as_tensor(pipeline(PROMPTS, **fixed, **arguments).images)


@pytest.mark.parametrize("guidance", [1.0, 4.5], ids=["without guidance", "with guidance"])
def test_the_ode_sampler_gives_the_latents_of_the_pipeline_to_1e_5(load, load_pipeline, noise, guidance):
    model = load(guidance_scale=guidance)
    x = noise(model, 3)
    sampler = ODESampler(grid=ExplicitGrid(values=tuple(model.default_times(4).tolist())))
    ours = sampler.sample(model.field(), x, model.encode(PROMPTS))
    expected = from_pipeline(load_pipeline(), x, guidance_scale=guidance, output_type="latent")
    torch.testing.assert_close(ours.samples[:, 0, 0], expected, atol=1e-5, rtol=0)
    assert ours.network_evaluations == 3 * 4 * (1 if guidance == 1 else 2)


@pytest.mark.parametrize("guidance", [1.0, 4.5], ids=["without guidance", "with guidance"])
def test_euler_through_the_field_gives_the_latents_of_the_pipeline_to_1e_5(load, load_pipeline, euler, noise, guidance):
    model = load(guidance_scale=guidance, negative_prompt="green")
    x = noise(model, 3)
    expected = from_pipeline(load_pipeline(), x, guidance_scale=guidance, negative_prompt="green", output_type="latent")
    torch.testing.assert_close(euler(model, PROMPTS, x), expected, atol=1e-5, rtol=0)


def test_decoded_pictures_are_those_of_the_pipeline_to_1e_5(load, load_pipeline, euler, noise):
    model = load(guidance_scale=4.5, decode_batch=2)
    x = noise(model, 3)
    expected = from_pipeline(load_pipeline(), x, guidance_scale=4.5, output_type="np").permute(0, 3, 1, 2)
    pictures = model.decode(euler(model, PROMPTS, x))
    assert pictures.shape == (3, 3, 16, 16)
    assert pictures.dtype == torch.float32
    torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)


def test_a_picture_of_another_size_is_that_of_the_pipeline(load, load_pipeline, euler, noise):
    model = load(height=24, width=8)
    x = noise(model, 3)
    assert model.state_shape == (4, 12, 4)
    expected = from_pipeline(load_pipeline(), x, height=24, width=8, guidance_scale=1.0, output_type="latent")
    torch.testing.assert_close(euler(model, PROMPTS, x), expected, atol=1e-5, rtol=0)


def test_guidance_and_negative_prompt_change_the_velocity(load, noise):
    fields = [load(guidance_scale=scale, negative_prompt=text) for scale, text in [(1.0, ""), (4.5, ""), (4.5, "green")]]
    x = noise(fields[0], 1)
    plain, guided, away = (model.field()(x, 0.6, model.encode(["red"])) for model in fields)
    assert (plain - guided).abs().max() > 1e-3
    assert (guided - away).abs().max() > 1e-3


def test_guided_velocity_extrapolates_from_the_negative_prompt(load, noise):
    model, guided = load(), load(guidance_scale=3.0, negative_prompt="green")
    x = noise(model, 2)
    positive, negative = (model.field()(x, 0.6, model.encode([text] * 2)) for text in ("red", "green"))
    torch.testing.assert_close(guided.field()(x, 0.6, guided.encode(["red"] * 2)), negative + 3 * (positive - negative), atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_a_time_per_picture_gives_what_the_same_scalar_gives(load, noise, guidance):
    model = load(guidance_scale=guidance)
    x, condition = noise(model, 3), model.encode(PROMPTS)
    scalar = model.field()(x, torch.tensor(0.4), condition)
    assert torch.equal(model.field()(x, torch.full((3,), 0.4), condition), scalar)
    assert torch.equal(model.field()(x, 0.4, condition), scalar)


def test_different_times_in_one_batch_are_those_of_separate_calls(load, noise):
    model = load()
    x, condition, times = noise(model, 3), model.encode(PROMPTS), torch.tensor([0.9, 0.5, 0.1])
    together = model.field()(x, times, condition)
    alone = torch.cat([model.field()(x[[i]], times[i], condition[[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_a_time_per_channel_is_refused(load, noise):
    model = load()
    with pytest.raises(ValueError, match=r"time of shape \(\) or \(2,\), got \(2, 4\); a picture has one noise level"):
        model.field()(noise(model, 2), torch.full((2, 4), 0.5), model.encode(["red", "green"]))


def test_default_times_are_the_grid_that_the_pipeline_used(load, load_pipeline, noise):
    model, pipeline = load(), load_pipeline()
    from_pipeline(pipeline, noise(model, 3), output_type="latent")
    assert torch.equal(model.default_times(4), pipeline.scheduler.sigmas)
    assert torch.equal(model.default_times(4)[[0, -1]], torch.tensor([1.0, 0.0]))


def test_default_times_follow_a_resolution_dependent_shift(load, load_pipeline, noise):
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, pipeline = load(), load_pipeline()
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "base_shift": 0.4, "max_shift": 1.3}
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**dynamic)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**dynamic)
    from_pipeline(pipeline, noise(model, 3), output_type="latent")
    torch.testing.assert_close(model.default_times(4), pipeline.scheduler.sigmas, atol=1e-7, rtol=0)


def test_no_steps_are_refused(load):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        load().default_times(0)


def test_latents_of_another_shape_are_refused(load):
    with pytest.raises(ValueError, match=r"latents must be \(batch, 4, 8, 8\), got \(2, 4, 8, 4\)"):
        load().decode(torch.zeros(2, 4, 8, 4))


def test_decoding_keeps_no_graph(load, noise):
    model = load()
    assert not model.decode(noise(model, 1).requires_grad_()).requires_grad


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_only_the_network_is_trained_and_nothing_is_in_training_mode(load, lora):
    model = load(lora=lora)
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) == 4
    assert not any(module.training for part in parts for module in part.modules())
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters() if part is not model.module)
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in model.module.named_parameters() if lora is None or "lora_" in name}
    assert trained == expected
    assert len(model.trainable_parameters()) == len(expected) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_half_precision_keeps_trained_weights_and_velocities_in_float32(load, noise, perturb, lora, dtype):
    model, exact = load(lora=lora, dtype=dtype), load(lora=lora)
    x, t, prompts = noise(model, 2), torch.tensor([0.9, 0.3]), ["red square", "green circle"]
    perturb(model)
    perturb(exact)
    rollout = model.field()(x, t, model.encode(prompts))
    assert {parameter.dtype for parameter in model.trainable_parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.pipeline.vae.parameters()} == {torch.float32}
    frozen = {parameter.dtype for parameter in model.module.parameters() if not parameter.requires_grad}
    assert frozen == (set() if lora is None else {getattr(torch, dtype)})
    assert rollout.dtype == torch.float32
    difference = (rollout - exact.field()(x, t, exact.encode(prompts))).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_rollout_and_update_see_the_same_bfloat16_velocity_and_the_update_has_gradients(load, noise, perturb, lora):
    model = load(lora=lora, dtype="bfloat16")
    perturb(model)
    x, condition, field = noise(model, 2), model.encode(["red", "green"]), model.field()
    with torch.autocast("cpu", torch.bfloat16):  # as a trainer might hold around both
        with torch.no_grad():
            rollout = field(x, 0.7, condition)
        update = field(x, 0.7, condition)
    assert torch.equal(rollout, update)
    update.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.trainable_parameters()[:20])


def test_casts_of_a_rollout_are_not_kept_for_the_update(load, noise):
    model, caching = load(dtype="bfloat16"), []
    model.module.register_forward_pre_hook(lambda *_: caching.append(torch.is_autocast_cache_enabled()))
    model.field()(noise(model, 1), 0.7, model.encode(["red"]))
    assert caching == [False]


def test_gradient_checkpointing_recomputes_and_changes_no_velocity_and_no_gradient(load, noise):
    gradients, calls = [], [0, 0]
    for checkpointing in (False, True):
        model = load(lora=LoRA(rank=2, alpha=2), gradient_checkpointing=checkpointing)

        def count(*_, which=int(checkpointing)):
            calls[which] += 1

        model.module.transformer_blocks[1].register_forward_pre_hook(count)
        loss = model.field()(noise(model, 2), 0.7, model.encode(["red", "green"])).square().mean()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.trainable_parameters())])
    assert calls == [1, 2]
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_the_field_calls_the_wrapped_module_it_is_given(load, noise):
    model = load()
    wrapped = torch.nn.DataParallel(model.module)
    calls = []
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    x, condition = noise(model, 1), model.encode(["red"])
    assert torch.equal(model.field(wrapped)(x, 0.5, condition), model.field()(x, 0.5, condition))
    assert calls == [1]
