"""Wan 2.1, 2.2 A14B and 2.2 5B against diffusers' own pipeline with Euler steps, and their conventions."""

from functools import partial

import pytest
import torch
from harness import check_training, ode_samples, standard_noise

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import Condition, FlowSDE
from flowrl.models import AutoModel, LoRA, Wan
from flowrl.models.experts import ExpertGuidance, by_rows
from flowrl.models.tail_cache import FirstBlockCache
from flowrl.models.tiny import tiny_wan, tiny_wan22, tiny_wan22_5b
from flowrl.testing import check_field
from flowrl.train import Evaluation
from flowrl.train.evaluation_result import EvaluationResult
from rewards import Brightness, FrameReward
from samplers import ODESampler, ShiftedGrid, SingularStochasticSampler

PROMPTS = ["a photo of red square", "green circle"]
BUILD = {"2.1": (tiny_wan, 32), "2.2 A14B": (tiny_wan22, 32), "2.2 5B": (tiny_wan22_5b, 64)}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """``folder_of(version)``: a saved pipeline with Euler steps, shift 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    folders = {version: tmp_path_factory.mktemp("wan") for version in BUILD}
    for version, (build, _) in BUILD.items():
        build(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(folders[version])
    return folders.__getitem__


@pytest.fixture
def source_of(folder_of):
    """``source_of(version, **fields)``: videos of five small frames."""

    def source(version, **fields):
        side = BUILD[version][1]
        sizes = {"height": side, "width": side, "num_frames": 5, "max_sequence_length": 12}
        return Wan(path=str(folder_of(version)), **{**sizes, **fields})

    return source


def wan_pipeline(folder, **parts):
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, noise, *, side=32, guidance_scale=1.0, output_type="latent", **arguments):
    sizes = {"height": side, "width": side, "num_frames": 5, "max_sequence_length": 12, **arguments}
    fixed = {"num_inference_steps": 4, "latents": noise.clone(), "guidance_scale": guidance_scale}
    return torch.as_tensor(pipeline(PROMPTS, **fixed, **sizes, output_type=output_type).frames)


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["without guidance", "with guidance"])
@pytest.mark.parametrize("version", BUILD)
def test_the_ode_sampler_gives_the_latents_of_the_pipeline_to_1e_5(source_of, folder_of, version, guidance):
    model = source_of(version, guidance_scale=guidance).load("cpu")
    noise, side = standard_noise(model, 2), BUILD[version][1]
    expected = drawn(wan_pipeline(folder_of(version)), noise, side=side, guidance_scale=guidance)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", BUILD)
def test_decoded_videos_are_those_of_the_pipeline_to_1e_5_with_the_frames_before_the_channels(source_of, folder_of, version):
    model, side = source_of(version, decode_batch=1).load("cpu"), BUILD[version][1]
    expected = drawn(wan_pipeline(folder_of(version)), noise := standard_noise(model, 2), side=side, output_type="pt")
    videos = model.decode(ode_samples(model, PROMPTS, noise))
    assert videos.shape == (2, 5, 3, side, side)
    torch.testing.assert_close(videos, expected, atol=1e-5, rtol=0)


def test_a_video_of_another_size_and_length_is_that_of_the_pipeline(source_of, folder_of):
    sizes = {"height": 16, "width": 48, "num_frames": 9}
    model = source_of("2.1", **sizes).load("cpu")
    assert model.state_shape == (4, 3, 2, 6)
    assert model.tokens == 3 * 1 * 3
    expected = drawn(wan_pipeline(folder_of("2.1")), noise := standard_noise(model, 2), **sizes)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)


def test_both_experts_take_their_own_steps_with_their_own_guidance_as_in_the_pipeline(source_of, folder_of):
    model = source_of("2.2 A14B", guidance_scale=5.0, guidance_scale_2=2.0).load("cpu")
    calls = []
    for name in ("transformer", "transformer_2"):
        getattr(model.pipeline, name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    noise = standard_noise(model, 2)
    samples = ode_samples(model, PROMPTS, noise)
    assert calls == ["transformer", *["transformer_2"] * 3]  # t = 1, 0.86, 0.60, 0.01 against 0.875
    pipeline = wan_pipeline(folder_of("2.2 A14B"))
    expected = drawn(pipeline, noise, guidance_scale=5.0, guidance_scale_2=2.0)
    torch.testing.assert_close(samples, expected, atol=1e-5, rtol=0)
    assert (samples - drawn(pipeline, noise, guidance_scale=5.0)).abs().max() > 1e-4


@pytest.mark.parametrize("version", BUILD)
def test_the_field_keeps_the_contract_also_across_the_experts_boundary(source_of, version):
    second = {"guidance_scale_2": 2.0} if version == "2.2 A14B" else {}
    model = source_of(version, guidance_scale=5.0, **second).load("cpu")
    check_field(model.field(), standard_noise(model, 4), model.encode([*PROMPTS, "cat", "a house"]))


def test_rows_come_back_in_their_order():
    chosen = torch.tensor([False, True, True, False])
    found = by_rows(chosen, lambda rows: rows + 10, lambda rows: rows + 20)
    assert found.tolist() == [20, 11, 12, 23]


def test_guidance_of_two_experts_costs_what_one_of_them_costs():
    def field(value):
        return lambda x, t, condition: x * 0 + value

    guided = ExpertGuidance(high=field(1.0), low=field(2.0), is_high=lambda t: t >= 0.875)
    assert guided.evaluations == 1
    assert guided(torch.zeros(3, 1), torch.tensor([0.5, 0.9, 0.875]), Condition(rows=3)).flatten().tolist() == [2, 1, 1]


def test_default_times_are_those_of_unipc_but_start_at_1(source_of, tmp_path):
    tiny_wan().save_pretrained(tmp_path)  # UniPC on flow sigmas, shift 3, as the real checkpoints
    model = AutoModel(path=str(tmp_path), height=32, width=32, num_frames=5).load("cpu")
    linear = torch.linspace(1, 0.001, 5, dtype=torch.float64)[:-1]
    expected = torch.cat([3 * linear / (1 + 2 * linear), torch.zeros(1, dtype=torch.float64)]).float()
    torch.testing.assert_close(model.default_times(4), expected, atol=1e-7, rtol=0)
    assert model.default_times(4)[[0, -1]].tolist() == [1.0, 0.0]


def test_our_ode_on_the_default_grid_is_first_order_unipc_to_1e_4_but_for_its_whole_timesteps(tmp_path, monkeypatch):
    from diffusers import UniPCMultistepScheduler

    def set_exact_timesteps(scheduler, *arguments, set_timesteps=UniPCMultistepScheduler.set_timesteps, **named):
        set_timesteps(scheduler, *arguments, **named)
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000  # of which it takes the whole part for the network

    monkeypatch.setattr(UniPCMultistepScheduler, "set_timesteps", set_exact_timesteps)
    tiny_wan().save_pretrained(tmp_path)
    model = Wan(path=str(tmp_path), height=32, width=32, num_frames=5, max_sequence_length=12).load("cpu")
    pipeline, noise = wan_pipeline(tmp_path), standard_noise(model, 2)
    first = {"solver_order": 1, "disable_corrector": [0, 1, 2, 3]}
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, **first)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), drawn(pipeline, noise), atol=1e-4, rtol=0)


def test_an_evaluation_of_videos_is_kept_as_film_strips_and_compared(source_of, tmp_path):
    model = source_of("2.1").load("cpu")
    evaluation = Evaluation(
        prompts=("red square", "cat"),
        sampler=ODESampler(grid=ShiftedGrid(steps=2)),
        rewards=(FrameReward(reward=Brightness()),),
        images_per_prompt=2,
    )
    result = evaluation.run(model)
    result.save(tmp_path)
    loaded = EvaluationResult.load(tmp_path)
    strip = (3, 32, 4 * 32 + 3 * 2)
    assert [tuple(picture.shape) for picture in loaded.images.values()] == [strip] * 4
    assert loaded.reward.tolist() == result.reward.tolist()
    assert result.grid().size == loaded.grid().size
    assert result.grid_against(loaded).size == loaded.grid_against(result).size


@pytest.mark.parametrize("version", ["2.1", "2.2 5B"])
def test_two_updates_with_a_lora_and_with_all_weights_leave_what_diffusers_loads(source_of, folder_of, tmp_path, version):
    draw = partial(drawn, side=BUILD[version][1], guidance_scale=5.0)
    load_pipeline = partial(wan_pipeline, folder_of(version))
    reward = FrameReward(reward=Brightness(), frames=2)
    check_training(source_of(version, guidance_scale=5.0), tmp_path, PROMPTS, draw, load_pipeline=load_pipeline, reward=reward)


@pytest.mark.parametrize(("expert", "indices"), [("high_noise", (0, 1)), ("low_noise", (2, 3))])
def test_two_updates_of_one_expert_leave_what_diffusers_loads(source_of, folder_of, tmp_path, expert, indices):
    def load_pipeline(**parts):
        pipeline = wan_pipeline(folder_of("2.2 A14B"), **parts)
        pipeline.load_lora_weights = partial(pipeline.load_lora_weights, load_into_transformer_2=expert == "low_noise")
        return pipeline

    sampler = SingularStochasticSampler(
        grid=ShiftedGrid(steps=5, shift=3.0),  # 1, 0.92, 0.82, 0.67, 0.43, 0: the boundary is 0.875
        dynamics=FlowSDE(noise_level=0.7),
        group_size=2,
        sde_indices=indices,
        strides=(1, 2),
    )
    source = source_of("2.2 A14B", guidance_scale=5.0, guidance_scale_2=2.0, trained_expert=expert)
    draw = partial(drawn, guidance_scale=5.0, guidance_scale_2=2.0)
    reward = FrameReward(reward=Brightness(), frames=None)
    check_training(source, tmp_path, PROMPTS, draw, load_pipeline=load_pipeline, sampler=sampler, reward=reward)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_one_expert_is_trained_and_the_other_is_not(source_of, lora, expert):
    trained, frozen = ("transformer", "transformer_2")[:: 1 if expert == "high_noise" else -1]
    model = source_of("2.2 A14B", trained_expert=expert, lora=lora).load("cpu")
    assert model.module is getattr(model.pipeline, trained)
    assert not any(parameter.requires_grad for parameter in getattr(model.pipeline, frozen).parameters())
    assert model.trainable_parameters()


def test_a_trained_step_on_the_other_side_of_the_boundary_is_refused(source_of):
    model = source_of("2.2 A14B").load("cpu")
    x, condition = standard_noise(model, 2), model.encode(PROMPTS)
    with pytest.raises(ConfigError, match=r"a step from timestep 500\.0 shall be trained, but the trained expert acts at timesteps >= 875"):
        model.field()(x, torch.tensor([0.95, 0.5]), condition)
    assert model.field()(x, 0.95, condition).requires_grad


def test_the_reference_is_the_base_model_and_weights_come_back(source_of):
    model = source_of("2.2 A14B", trained_expert="low_noise").load("cpu")
    sampler = ODESampler(grid=ShiftedGrid(steps=2))
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    before = sampler.sample(model.field(), noise, condition).final
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05)
    moved = sampler.sample(model.field(), noise, condition).final
    with model.reference():
        assert torch.equal(sampler.sample(model.field(), noise, condition).final, before)
    assert torch.equal(sampler.sample(model.field(), noise, condition).final, moved)
    assert (moved - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("version", "fields", "message"),
    [
        ("2.1", {"height": 24}, "multiples of 16 for .*, got 24 x 32"),
        ("2.2 5B", {"width": 48}, "multiples of 32 for .*, got 64 x 48"),
        ("2.1", {"num_frames": 4}, "num_frames must be one more than a multiple of 4 for .*, got 4"),
        ("2.1", {"num_frames": 0}, "num_frames must be >= 1, .*; got 0, 12"),
        ("2.2 A14B", {"guidance_scale_2": 0.0}, "guidance_scale_2 must be >= 1, got 0.0"),
        ("2.2 A14B", {"guidance_scale_2": 3.0}, "guidance_scale_2 3 has no effect where guidance_scale is 1; set that above 1"),
        ("2.1", {"max_sequence_length": 513}, r"max_sequence_length in 1\.\.512; got 5, 513"),
        ("2.1", {"trained_expert": "low"}, "trained_expert must be high_noise or low_noise, got 'low'"),
        ("2.1", {"trained_expert": "low_noise"}, "has one transformer; leave out trained_expert and guidance_scale_2"),
        ("2.2 A14B", {"tail_cache": FirstBlockCache()}, "has two experts, between which a tail_cache cannot tell"),
        ("2.2 5B", {"guidance_scale": 5.0, "guidance_scale_2": 3.0}, "has one transformer; leave out trained_expert and guidance_scale_2"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(source_of, version, fields, message):
    with pytest.raises(ConfigError, match=message):
        source_of(version, **fields).load("cpu")


@pytest.mark.parametrize("version", ["2.1", "2.2 5B"])
def test_a_video_decoded_in_tiles_with_an_offloaded_decoder_resembles_the_one_decoded_whole(source_of, version):
    side = 2 * BUILD[version][1]
    whole, tiled = (
        source_of(version, height=side, width=side, **more).load("cpu") for more in ({}, {"decode_tile": side // 2, "decoder": "offload"})
    )
    latents = standard_noise(whole, 1)
    expected, found = whole.decode(latents), tiled.decode(latents)
    assert found.shape == expected.shape == (1, 5, 3, side, side)
    assert 0.8 < torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] < 1  # random weights see far beyond a tile


def test_dropped_text_encoders_have_left_the_embeddings(source_of):
    kept, dropped = (source_of("2.1", guidance_scale=5.0, text_encoders=plan).load("cpu") for plan in ("keep", "drop"))
    dropped.prepare(PROMPTS)
    noise = standard_noise(kept, 2)
    assert torch.equal(ode_samples(dropped, PROMPTS, noise), ode_samples(kept, PROMPTS, noise))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # PyTorch's, of a norm that is not fused
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_half_precision_is_near_single_in_both_experts(source_of, lora):
    half, single = (source_of("2.2 A14B", dtype=dtype, lora=lora).load("cpu") for dtype in ("bfloat16", "float32"))
    x, condition = standard_noise(half, 2), half.encode(PROMPTS)
    with torch.no_grad():
        found, expected = (model.field()(x, torch.tensor([0.95, 0.4]), condition) for model in (half, single))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1
    assert {parameter.dtype for parameter in half.trainable_parameters()} == {torch.float32}


def test_an_expert_without_its_boundary_is_refused(tmp_path):
    pipeline = tiny_wan22()
    pipeline.register_to_config(boundary_ratio=None)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has one transformer, or two with a boundary_ratio; this one does not, save it whole"):
        Wan(path=str(tmp_path)).load("cpu")


def test_a_scheduler_of_diffusion_models_is_refused(tmp_path):
    from diffusers import UniPCMultistepScheduler

    tiny_wan(scheduler=UniPCMultistepScheduler()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has use_flow_sigmas=False, but Wan is a flow model; save it with True"):
        Wan(path=str(tmp_path)).load("cpu")
