"""Frozen weights in 4 and 8 bits: what they hold, against tables and libraries of their own; what is trained through them; refusals."""

import builtins
import math
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from flux_cases import draw_flux1, flux1
from harness import ode_samples, standard_noise, two_updates
from safetensors.torch import load_file
from torch import nn

from flowrl.errors import ConfigError, MissingExtraError
from flowrl.flow import FlowSDE, tail_of
from flowrl.models import LORA_FILE, AutoModel, FirstBlockCache, LoRA, StableDiffusion3, quantise
from flowrl.models.quantise import FORMS, EightBitLinear, FourBitLinear, QuantisedLinear, quantise_network
from flowrl.models.tiny import TINY
from flowrl.rl import MultiGranularityAdvantage
from flowrl.train import AdamW, RLTrainer, UpdateSettings
from flowrl.train.plan import Subject
from flowrl.train.plan.architecture import architecture_of
from flowrl.train.plan.inputs import geometry_of
from flowrl.train.plan.passes import NetworkSetup, evaluating, sizes
from rewards import Brightness
from samplers import ShiftedGrid, SingularStochasticSampler

CPU = torch.device("cpu")
PROMPTS = ["a photo of red square", "green circle"]
# arXiv:2305.14314, Appendix E.
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334)
NF4 += (-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
NF4 += (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


@pytest.fixture
def sd3(pipeline_folder):
    return StableDiffusion3(path=str(pipeline_folder), max_sequence_length=3, lora=LoRA(rank=2, alpha=4.0))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return flux1(tmp_path_factory.mktemp("flux")).source(lora=LoRA(rank=2, alpha=4.0))


@pytest.fixture(params=["sd3", "flux"])
def source(request):
    return request.getfixturevalue(request.param)


def packed_layers(module):
    return {name.replace(".base_layer", ""): layer for name, layer in module.named_modules() if isinstance(layer, QuantisedLinear)}


def packed(form, weight, dtype=torch.float32):
    kind = FORMS[form]
    return kind(weight.shape[1], weight.shape[0], kind.pack(weight), None, dtype)


def toy_run(folder):
    """What a trainer has beside a model."""
    sampler = SingularStochasticSampler(grid=ShiftedGrid(steps=4), dynamics=FlowSDE(noise_level=0.7), group_size=2, sde_indices=(0,))
    fields = {"run_dir": str(folder / "run"), "prompts": str(folder / "prompts.txt"), "updates": 1, "prompts_per_update": 1}
    return fields | {"sampler": sampler, "reward": Brightness(), "advantage": MultiGranularityAdvantage(), "optimizer": AdamW(lr=1e-3)}


def rounded(form, weight):
    """What is left of weights, by another route than ours: the library's own layer, or the formula."""
    if form == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", compress_statistics=True)
    layer.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True, blocksize=64, module=layer)
    layer.to("cpu")
    return dequantize_4bit(layer.weight, layer.weight.quant_state)


def with_rounded_weights(source):
    """The same model without packed layers; its plain ones have what packing leaves."""
    plain = replace(source, quantise=None).load("cpu")
    layers = dict(plain.module.named_modules())
    with torch.no_grad():
        for name in packed_layers(source.load("cpu").module):
            layer = layers.get(f"{name}.base_layer", layers[name])
            layer.weight.copy_(rounded(source.quantise, layer.weight))
    return plain


# ---------------------------------------------------------------------------------------------------------------- layers


def test_four_bits_are_the_papers_levels_times_the_largest_of_64():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor(NF4)[torch.randint(16, (64, 128), generator=generator)]
    levels[:, ::64] = 1.0  # so that every block has the same scale, which double quantisation then keeps
    torch.testing.assert_close(packed("nf4", 0.3 * levels).unpacked(), 0.3 * levels, rtol=1e-6, atol=1e-6)


def test_four_bits_take_the_nearest_level():
    weight = torch.linspace(-1, 1, 64 * 256).reshape(256, 64)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    weight[:, 0] = 1.0
    nearest = torch.tensor(NF4)[(weight[..., None] - torch.tensor(NF4)).abs().argmin(-1)]
    torch.testing.assert_close(packed("nf4", weight).unpacked(), nearest, rtol=1e-6, atol=1e-6)


def test_eight_bits_are_off_by_half_a_step_at_most():
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    step = weight.abs().amax(1, keepdim=True) / 127
    error = (packed("int8", weight).unpacked() - weight).abs()
    assert (error <= 0.5001 * step).all()
    assert (error > 0.4 * step).any()
    assert not packed("int8", torch.zeros(2, 3)).unpacked().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 64), (7, 33), (80, 48)], ids=str)
def test_a_packed_layer_multiplies_by_its_rounded_weights_forwards_and_backwards(form, shape):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=generator), torch.randn(2, 5, shape[1], generator=generator)
    bias = torch.randn(shape[0], generator=generator)
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Sequential(nn.Linear(shape[1], shape[0]))])
    network.blocks[0][0].load_state_dict({"weight": weight, "bias": bias})
    quantise_network(network, form, dtype=torch.float32, device=CPU)
    layer, exact = network.blocks[0][0], nn.functional.linear
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = layer(ours), exact(theirs, rounded(form, weight), bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for out in (found, expected):
        out.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_the_rows_beside_it(form):
    layer = packed(form, torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    assert packed(form, torch.ones(3, 64), torch.bfloat16)(x).dtype == torch.bfloat16
    x[1, 3] = 1e4  # an outlier, which LLM.int8() would give to all rows
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 64), (7, 33), (300, 256)], ids=str)
def test_the_bytes_of_a_layer_are_known_without_packing_it(form, shape):
    held = FORMS[form].pack(torch.randn(shape))
    counted = FORMS[form].sizes(*shape)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in counted.items()
    }
    weights = math.prod(shape)
    by_hand = -(-weights // 2) + -(-weights // 64) + 4 * -(-weights // (64 * 256)) + 4 if form == "nf4" else weights + 4 * shape[0]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held.values()) == by_hand


# ---------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_network_is_the_plain_one_with_rounded_weights(source, form, perturb):
    source = replace(source, quantise=form)
    ours, plain = source.load("cpu"), with_rounded_weights(source)
    assert all(parameter.dtype == torch.float32 for parameter in ours.trainable_parameters())
    found = []
    for model in (ours, plain):
        perturb(model)
        field, x = model.field(), standard_noise(model, 2)
        velocity = field(x, 0.7, model.encode(PROMPTS))
        with model.reference(), torch.no_grad():
            reference = field(x, 0.7, model.encode(PROMPTS))
        velocity.square().mean().backward()
        gradients = [parameter.grad for parameter in model.trainable_parameters() if parameter.grad is not None]
        found.append((velocity.detach(), reference, *gradients))
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_embeddings_norms_and_the_last_projection_stay_as_they_are(sd3):
    model, plain = replace(sd3, quantise="nf4").load("cpu"), sd3.load("cpu")
    assert {type(layer) for layer in packed_layers(model.module).values()} == {FourBitLinear}
    theirs = plain.module.state_dict()
    kept = {
        name: tensor for name, tensor in model.module.state_dict().items() if name.startswith(("pos", "time", "context", "norm", "proj"))
    }
    assert len(kept) > 10
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_the_plan_counts_what_a_packed_network_really_holds(source, form, dtype):
    source = replace(source, quantise=form, dtype=dtype)
    module = source.load("cpu").module
    tensors = [*module.parameters(), *module.buffers()]
    architecture = architecture_of(source.path)
    setup = NetworkSetup(
        part=architecture.parts[source.network],
        geometry=geometry_of(architecture, source),
        lora=source.lora,
        storage=source.storage_dtype,
        compute=source.compute_dtype,
        checkpointing=False,
        quantise=form,
    )
    assert sizes(setup).total == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert sizes(setup).trained == sum(tensor.numel() for tensor in tensors if tensor.requires_grad)
    assert evaluating(setup, 2).operations == evaluating(replace(setup, quantise=None), 2).operations


def test_both_experts_are_packed_and_planned(tmp_path):
    TINY["wan22"]().save_pretrained(tmp_path)
    source = AutoModel(path=str(tmp_path), height=16, width=16, num_frames=5, quantise="nf4", lora=LoRA(rank=2))
    other = source.load("cpu").pipeline.transformer_2
    assert packed_layers(other)
    assert not any(parameter.requires_grad for parameter in other.parameters())
    run = RLTrainer(model=source, **toy_run(tmp_path))
    held = sum(tensor.untyped_storage().nbytes() for tensor in [*other.parameters(), *other.buffers()])
    assert Subject.of(run, cuda=False).other_parts()["transformer_2"] == held
    assert Subject.of(run, cuda=False).loaded() == Subject.of(replace(run, model=replace(source, quantise=None)), cuda=False).loaded()


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_network_can_be_packed_and_gives_its_lora_a_gradient(name, tmp_path):
    TINY[name]().save_pretrained(tmp_path)
    frames = {"num_frames": 5} if name.startswith("wan") else {}
    source = AutoModel(path=str(tmp_path), height=32, width=32, quantise="nf4", lora=LoRA(rank=2), **frames)
    model = source.load("cpu")
    assert packed_layers(model.module)
    if name != "flux1_kontext":  # which wants a picture
        velocity = model.field()(standard_noise(model, 1), 0.9, model.encode(["red"]))
        velocity.square().mean().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.trainable_parameters())


def test_a_cached_tail_and_checkpointing_work_on_packed_layers(sd3, perturb):
    source = replace(sd3, quantise="nf4", tail_cache=FirstBlockCache(threshold=0.5), gradient_checkpointing=True)
    gradients, tails = [], []
    for model in (source.load("cpu"), with_rounded_weights(source)):
        perturb(model)
        x, condition = standard_noise(model, 2), model.encode(PROMPTS)
        with torch.no_grad(), tail_of(model.field()) as tail:
            tails.append(torch.stack([tail(x, t, condition) for t in (0.5, 0.49, 0.2)]))
        model.module.train()
        model.field()(x, 0.5, condition).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.trainable_parameters() if p.grad is not None]))
    torch.testing.assert_close(*tails, rtol=0, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_trained_on_packed_weights_loads_into_the_plain_pipeline(sd3, form, tmp_path, load_pipeline):
    source = replace(sd3, quantise=form)
    weights = two_updates(source, tmp_path, PROMPTS)
    noise = standard_noise(source.load("cpu"), 2)
    _same_lora_everywhere(source, weights, noise)
    pipeline = load_pipeline()
    pipeline.load_lora_weights(weights, weight_name=LORA_FILE)
    drawn = pipeline(
        PROMPTS, num_inference_steps=4, latents=noise.clone(), max_sequence_length=3, guidance_scale=1.0, output_type="latent"
    ).images
    plain = replace(source, quantise=None).load("cpu")
    plain.load_weights(weights)
    torch.testing.assert_close(ode_samples(plain, PROMPTS, noise), torch.as_tensor(drawn), atol=1e-5, rtol=0)


def test_flux_trains_packed_with_dropped_encoders_and_checkpointing_in_bfloat16(flux, tmp_path):
    source = replace(flux, quantise="nf4", dtype="bfloat16", text_encoders="drop", gradient_checkpointing=True)
    weights = two_updates(source, tmp_path, PROMPTS, update=UpdateSettings(micro_batch=3, old_log_prob="recompute"))
    saved = load_file(weights / LORA_FILE)
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    case = flux1(tmp_path)
    pipeline = case.load_pipeline()
    pipeline.load_lora_weights(weights, weight_name=LORA_FILE)
    plain = replace(flux, quantise=None).load("cpu")
    plain.load_weights(weights)
    noise = standard_noise(plain, 2)
    drawn = draw_flux1(pipeline, noise, prompts=PROMPTS, **case.fixed)
    torch.testing.assert_close(ode_samples(plain, PROMPTS, noise), drawn, atol=1e-5, rtol=0)


def _same_lora_everywhere(source, weights, noise):
    """What was saved is the whole LoRA and nothing else, moves the packed model, and loads bit for bit."""
    model = source.load("cpu")
    before = ode_samples(model, PROMPTS, noise)
    model.load_weights(weights)
    assert (ode_samples(model, PROMPTS, noise) - before).abs().max() > 1e-3
    saved = load_file(weights / LORA_FILE)
    assert all(".lora_" in name for name in saved)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in model.trainable_parameters())
    model.save_weights(weights / "again")
    again = load_file(weights / "again" / LORA_FILE)
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": None, "quantise": "nf4"}, "without a LoRA none is frozen; add `lora`"),
        ({"quantise": "nf3"}, "unknown quantise 'nf3'; did you mean 'nf4'"),
        ({"quantise": "int8", "compile": "blocks"}, "compile and quantise do not go together"),
    ],
    ids=["no LoRA", "unknown", "compiled"],
)
def test_what_does_not_go_together_is_refused(sd3, fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(sd3, **fields)


def test_a_missing_library_is_named_with_its_extra(sd3, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("bitsandbytes"):
            raise ImportError("none here")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtraError, match=r"flowrl-torch\[bitsandbytes\]"):
        replace(sd3, quantise="nf4").load("cpu")


def test_a_library_that_does_not_work_on_this_device_is_refused_before_anything_is_read(sd3, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(StableDiffusion3, "_pipeline", lambda _: pytest.fail("was read"))
    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.functional.quantize_4bit", broken)
        message = "quantise='nf4' cannot be had here, on cpu in bfloat16: no kernel image is available; leave"
        with pytest.raises(ConfigError, match=message):
            replace(sd3, quantise="nf4", dtype="bfloat16").load("cpu")
    monkeypatch.setattr(EightBitLinear, "unpacked", lambda self: 1.1 * self.weight * self.scales[:, None])
    with pytest.raises(ConfigError, match=r"quantise='int8' .* is off by 0\.1 of the largest weight"):
        replace(sd3, quantise="int8").load("cpu")


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear has no linear layers in repeated blocks; leave `quantise` out"):
        quantise.linear_layers(nn.Linear(2, 2))
