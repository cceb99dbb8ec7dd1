"""Attention back ends, compilation and feature caching: what they may change, and what they must not."""

import shutil
from dataclasses import replace

import pytest
import torch
from harness import standard_noise, two_updates

from flowrl.config import instantiate
from flowrl.errors import ConfigError
from flowrl.flow import FlowSDE, IntervalGuidance, has_tail, tail_of
from flowrl.models import FirstBlockCache, LoRA, StableDiffusion3, TaylorSeerCache, TinySD3
from flowrl.models.speed import use_attention
from flowrl.train import UpdateSettings
from flowrl.train.describe import describe
from samplers import ODESampler, SDESampler, ShiftedGrid, SingularStochasticSampler

PROMPTS = ["red", "green"]
GRID = ShiftedGrid(steps=8, shift=3.0)
CACHES = {"first block": FirstBlockCache(threshold=0.5), "taylor": TaylorSeerCache(interval=2, warm_up=2)}


dynamo_warns = pytest.mark.filterwarnings(
    "ignore::UserWarning:torch", "ignore:Dynamo detected:UserWarning", "ignore::DeprecationWarning:torch"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four blocks: one to look at, three to skip."""
    folder = tmp_path_factory.mktemp("pipeline") / "four"
    TinySD3(vocabulary=("red", "green"), layers=4, heads=2).build().save_pretrained(folder)
    return folder


@pytest.fixture
def source(folder):
    return StableDiffusion3(path=str(folder), max_sequence_length=0)


# -------------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("backend", ["xformers", "flash"])
def test_a_back_end_is_refused_where_its_kernel_does_not_run(source, backend):
    remedy = rf"'{backend}' does not work here, on cpu .*pip install 'flowrl-torch\[{backend}\]' on a machine with CUDA"
    with pytest.raises(ConfigError, match=remedy):
        replace(source, attention=backend).load("cpu")


def test_an_unknown_back_end_is_refused(source):
    with pytest.raises(ConfigError, match="unknown attention back end 'flesh'; did you mean 'flash'"):
        replace(source, attention="flesh").load("cpu")


def test_a_network_that_cannot_switch_says_so(source):
    with pytest.raises(ConfigError, match="SD3Transformer2DModel takes no back end but 'native' and 'xformers', got '_native_math'"):
        replace(source, attention="_native_math").load("cpu")
    model = replace(source, attention="native").load("cpu")
    noise = standard_noise(model, 1)
    assert torch.equal(model.field()(noise, 0.5, model.encode(["red"])), source.load("cpu").field()(noise, 0.5, model.encode(["red"])))


def test_a_back_end_reaches_the_network_and_not_the_rest_of_the_process():
    from diffusers import FluxTransformer2DModel
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    network = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    before = _AttentionBackendRegistry.get_active_backend()[0]
    use_attention(network, "_native_math", device=torch.device("cpu"), dtype=torch.float32)
    assert {part.processor._attention_backend for part in network.modules() if hasattr(part, "processor")} == {
        AttentionBackendName._NATIVE_MATH
    }
    assert _AttentionBackendRegistry.get_active_backend()[0] == before


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (lambda query, key, value: query.detach(), "has no gradient, so that nothing can be trained through it"),
        (lambda query, key, value: query, "is off by .* from PyTorch's own here"),
    ],
    ids=["no gradient", "wrong"],
)
def test_a_back_end_that_runs_is_tried_for_its_gradient_and_its_numbers(source, monkeypatch, attention, message):
    monkeypatch.setattr("diffusers.models.attention_dispatch.dispatch_attention_fn", attention)
    with pytest.raises(ConfigError, match=message):
        replace(source, attention="native").load("cpu")


# ------------------------------------------------------------------------------------------------------------ compilation


@pytest.mark.slow
@dynamo_warns
def test_the_ratio_gate_stays_green_under_compilation(source, tmp_path):
    torch._dynamo.reset()
    compiled = replace(source, compile="blocks", compile_backend="aot_eager", lora=LoRA(rank=2), gradient_checkpointing=True)
    assert two_updates(compiled, tmp_path, PROMPTS).exists()  # which looks at the gate


@pytest.mark.slow
@dynamo_warns
@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("g++") or shutil.which("clang++")), reason="no C compiler for inductor")
def test_the_ratio_gate_stays_green_under_inductor(source, tmp_path):
    torch._dynamo.reset()
    sampler = SDESampler(grid=ShiftedGrid(steps=4), dynamics=FlowSDE(noise_level=0.7), group_size=2, sde_indices=(0, 1))
    update = UpdateSettings(micro_batch=4)  # as many states a call as in the rollout: inductor compiles for one size alone
    two_updates(replace(source, lora=LoRA(rank=2), compile="blocks"), tmp_path, PROMPTS, sampler=sampler, update=update)


@pytest.mark.slow
@dynamo_warns
@torch.no_grad()
@pytest.mark.parametrize("what", ["blocks", "network"])
def test_a_compiled_network_gives_the_velocity_of_the_plain_one_for_any_batch(source, what):
    torch._dynamo.reset()
    plain, compiled = source.load("cpu"), replace(source, compile=what, compile_backend="aot_eager").load("cpu")
    parts = compiled.module.transformer_blocks if what == "blocks" else [compiled.module]
    assert all(part._compiled_call_impl is not None for part in parts)
    for rows in (1, 3, 2):
        noise, condition = standard_noise(plain, rows), plain.encode(["red"] * rows)
        torch.testing.assert_close(compiled.field()(noise, 0.5, condition), plain.field()(noise, 0.5, condition), atol=1e-6, rtol=0)


def test_an_unknown_compiler_is_refused(source):
    with pytest.raises(ConfigError, match="unknown compile_backend 'inductr'; did you mean 'inductor'"):
        replace(source, compile="blocks", compile_backend="inductr").load("cpu")


# -------------------------------------------------------------------------------------------------------------- precision


def test_a_network_in_bfloat16_is_sampled_in_float32(source):
    """States follow the recorded velocities to 6 digits; bfloat16 sums would lose all but 2 or 3."""
    model = replace(source, dtype="bfloat16", lora=LoRA(rank=2)).load("cpu")
    assert model.module.transformer_blocks[0].ff.net[2].weight.dtype == torch.bfloat16
    calls = []

    def recorded(x_t, t, condition):
        velocity = model.field()(x_t, t, condition)
        calls.append((x_t.double(), torch.as_tensor(t).double(), velocity.double()))
        return velocity

    noise, sampler = standard_noise(model, 2), ODESampler(grid=GRID)
    final = sampler.sample(recorded, noise, model.encode(PROMPTS)).final
    assert {final.dtype, *(velocity.dtype for velocity in [model.field()(noise, 0.5, model.encode(PROMPTS))])} == {torch.float32}
    times = GRID.times().double()
    expected = noise.double() + sum((s - t) * velocity for (_, _, velocity), t, s in zip(calls, times[:-1], times[1:], strict=True))
    torch.testing.assert_close(final.double(), expected, atol=2e-6, rtol=0)


def test_transitions_of_a_network_in_bfloat16_are_scored_in_float32(source):
    model = replace(source, dtype="bfloat16", lora=LoRA(rank=2)).load("cpu")
    found = chain().sample(model.field(), standard_noise(model, 6), model.encode(PROMPTS), torch.Generator().manual_seed(1))
    assert {found.children.dtype, found.log_prob.dtype, found.t.dtype, found.samples.dtype} == {torch.float32}
    dynamics = FlowSDE(noise_level=0.7)
    for column in range(found.log_prob.shape[1]):
        rows = [int(parent) for parent in found.parent_index[:, column]]
        parents, t, s = found.parents[rows], found.t[rows], found.s[rows]
        velocity = model.field()(parents, t, model.encode(PROMPTS)[found.group])
        again = dynamics.transition(velocity.double(), parents.double(), t.double(), s.double()).log_prob(
            found.children[:, column].double()
        )
        torch.testing.assert_close(found.log_prob[:, column].double(), again.detach(), atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------- feature caching


def singular(**fields):
    return SingularStochasticSampler(
        grid=GRID, dynamics=FlowSDE(noise_level=0.7), group_size=3, **{"sde_indices": (0, 1), "strides": (1, 2)} | fields
    )


def chain(**fields):
    return SDESampler(grid=GRID, dynamics=FlowSDE(noise_level=0.7), group_size=3, sde_indices=(0, 2), **fields)


@pytest.fixture
def draw(source):
    """``draw(sampler, **fields of the source)``: a rollout of two prompts from the same noise."""

    def drawn(sampler, **fields):
        model = replace(source, **fields).load("cpu")
        noise = standard_noise(model, 2 * sampler.noise_rows())
        return sampler.sample(model.field(), noise, model.encode(PROMPTS), torch.Generator().manual_seed(1))

    return drawn


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("sampler", [singular(), chain()], ids=["singular", "chain"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_caching_changes_samples_a_little_and_nothing_that_is_trained(draw, cache, sampler, guidance):
    plain, cached = draw(sampler, guidance_scale=guidance), draw(sampler, guidance_scale=guidance, tail_cache=cache)
    for name in ("parents", "children", "log_prob", "t", "s", "parent_index", "group"):
        assert torch.equal(getattr(plain, name), getattr(cached, name)), name
    difference = (plain.samples - cached.samples).abs().max()
    assert 0 < difference < 0.5 * plain.samples.std()


@pytest.mark.parametrize("sampler", [singular(), chain()], ids=["singular", "chain"])
def test_a_cache_that_never_skips_gives_the_plain_samples(draw, sampler):
    never = FirstBlockCache(threshold=1e-12)
    torch.testing.assert_close(draw(sampler, tail_cache=never).samples, draw(sampler).samples, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_the_network_is_what_it_was_after_a_rollout(source, cache):
    model = replace(source, tail_cache=cache).load("cpu")
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    before = model.field()(noise, 0.5, condition)
    singular().sample(model.field(), noise, condition, torch.Generator().manual_seed(1))
    assert torch.equal(model.field()(noise, 0.5, condition), before)
    assert ODESampler(grid=GRID).sample(model.field(), noise, condition).final.isfinite().all()


def test_the_network_is_what_it_was_after_a_tail_that_failed(source):
    model = replace(source, tail_cache=FirstBlockCache(threshold=10.0)).load("cpu")
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    expected = model.field()(noise, 0.4, condition)
    with pytest.raises(RuntimeError), tail_of(model.field()) as field:
        field(field(noise, 0.5, condition)[:, :1], 0.4, condition)  # a channel instead of all
    assert torch.equal(model.field()(noise, 0.4, condition), expected)


def test_the_first_block_decides_whether_the_others_run(source):
    model = replace(source, tail_cache=FirstBlockCache(threshold=1e9)).load("cpu")
    calls = [[] for _ in model.module.transformer_blocks]
    for block, seen in zip(model.module.transformer_blocks, calls, strict=True):
        block.attn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    with tail_of(model.field()) as field:
        for t in (0.6, 0.5, 0.4):
            field(noise, t, condition)
    assert [len(seen) for seen in calls] == [3, 1, 1, 1]


def test_taylor_computes_one_step_of_every_interval_and_extrapolates_the_others(source):
    model = replace(source, tail_cache=TaylorSeerCache(interval=3, warm_up=2)).load("cpu")
    seen = []
    model.module.transformer_blocks[1].attn.to_q.register_forward_hook(lambda *_: seen.append(step))
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    with tail_of(model.field()) as field:
        for step in range(8):
            field(noise, 0.9 - 0.1 * step, condition)
    assert seen == [0, 1, 3, 6]


def test_a_path_starts_with_nothing_remembered_whatever_came_before(source):
    model = replace(source, tail_cache=FirstBlockCache(threshold=1e9)).load("cpu")
    noise, condition = standard_noise(model, 4), model.encode(PROMPTS * 2)
    with tail_of(model.field()) as field:
        field(noise[:2], 0.9, condition[:2])
        fresh = field(noise[2:3], 0.5, condition[2:3])  # another number of rows
    with tail_of(model.field()) as field:
        assert torch.equal(field(noise[2:3], 0.5, condition[2:3]), fresh)
    assert torch.equal(model.field()(noise[2:3], 0.5, condition[2:3]), fresh)


def test_guidance_of_any_kind_is_cached_through(source):
    model = replace(source, guidance_scale=2.0, tail_cache=FirstBlockCache(threshold=1e9)).load("cpu")
    interval = IntervalGuidance(guidance=model.field(), until=0.5)
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS)
    with tail_of(interval) as field:
        found = [field(noise, t, condition) for t in (0.9, 0.7, 0.3)]
    torch.testing.assert_close(found[0], interval(noise, 0.9, condition), atol=1e-6, rtol=0)
    assert not torch.equal(found[1], interval(noise, 0.7, condition))
    torch.testing.assert_close(found[2], interval(noise, 0.3, condition), atol=1e-6, rtol=0)  # half the rows: from nothing again


def test_rows_that_do_not_fit_one_call_are_taken_to_the_end_batch_by_batch(draw, source):
    whole = draw(singular(), tail_cache=FirstBlockCache(threshold=1e-12))
    parts = draw(singular(max_batch=2), tail_cache=FirstBlockCache(threshold=1e-12))
    torch.testing.assert_close(parts.samples, whole.samples, atol=1e-5, rtol=0)
    assert parts.network_evaluations == whole.network_evaluations


def test_each_tail_by_itself_evaluates_all_its_states(draw):
    # per prompt: anchor 2; tails of k = 0 with 7 and 4 evaluated states, of k = 1 with 6 and 3; groups of 3
    assert draw(singular(), tail_cache=CACHES["taylor"]).network_evaluations == 2 * (2 + 3 * (7 + 4 + 6 + 3))


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_a_run_with_caching_learns_with_the_ratio_gate_green(source, tmp_path, cache):
    two_updates(replace(source, lora=LoRA(rank=2), tail_cache=cache, guidance_scale=2.0), tmp_path, PROMPTS)


def test_a_field_without_a_cache_is_its_own_tail(source):
    field = source.load("cpu").field()
    assert not has_tail(field)
    with tail_of(field) as other:
        assert other is field


def test_a_network_that_diffusers_cannot_cache_in_is_refused_at_once():
    from torch import nn

    class Sheet(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    with pytest.raises(ConfigError, match="FirstBlockCache cannot cache in a Sheet"), FirstBlockCache().active(Sheet()):
        pass
    with pytest.raises(ConfigError, match="FirstBlockCache cannot cache in a Linear"), FirstBlockCache().active(nn.Linear(1, 1)):
        pass
    with pytest.raises(ConfigError, match="TaylorSeerCache finds nothing to cache in a Sheet"), TaylorSeerCache().active(Sheet()):
        pass


def test_a_cache_is_a_component_of_the_model_in_a_config():
    model = {"target": "flowrl.models.StableDiffusion3", "path": "somewhere", "text_encoders": "drop", "decode_tile": 512}
    cache = {"target": "flowrl.models.TaylorSeerCache", "interval": 3}
    built = instantiate(model | {"tail_cache": cache})
    assert built == StableDiffusion3(path="somewhere", text_encoders="drop", decode_tile=512, tail_cache=TaylorSeerCache(interval=3))
    assert instantiate(describe(built)) == built


def test_sharded_weights_and_a_decision_by_each_process_are_kept_apart(source, monkeypatch):
    network = source.load("cpu").module
    monkeypatch.setattr("torch.distributed.tensor.DTensor", torch.nn.Parameter)
    with pytest.raises(ConfigError, match="sharded weights need all to agree; use TaylorSeerCache"), FirstBlockCache().active(network):
        pass
    with TaylorSeerCache().active(network):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FirstBlockCache(threshold=0.0), "threshold must be > 0, got 0.0"),
        (lambda: TaylorSeerCache(interval=1), "interval must be at least 2, got 1"),
        (lambda: TaylorSeerCache(order=2, warm_up=2), "warm_up must be at least 3, got 2"),
        (lambda: StableDiffusion3(path="x", compile="blocks", tail_cache=FirstBlockCache()), "compile and tail_cache do not go together"),
    ],
    ids=["threshold", "interval", "warm up", "compiled"],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
