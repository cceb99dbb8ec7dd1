"""What dry runs count, against counts by hand and against the same network on real tensors."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flowrl.models import LoRA
from flowrl.models.tiny import TINY
from flowrl.train.plan import architecture_of, passes
from flowrl.train.plan.dry_run import DeviceRules, Meter
from flowrl.train.plan.inputs import geometry_of, network_inputs
from flowrl.train.plan.passes import NetworkSetup, evaluating, picture_scoring, sizes, updating

FLOAT32, BFLOAT16 = 4, 2
N = 1000


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def setup_of(path, *, lora=None, checkpointing=False, compute=torch.float32, side=None):
    architecture = architecture_of(path)
    geometry = geometry_of(architecture, SimpleNamespace(height=side, width=side, max_sequence_length=1 if "digits" in path else None))
    network = architecture.parts.get("transformer") or architecture.parts["unet"]
    storage = torch.float32 if lora is None else compute
    return NetworkSetup(part=network, geometry=geometry, lora=lora, storage=storage, compute=compute, checkpointing=checkpointing)


def test_the_meter_sees_tensors_come_and_go():
    meter, x = Meter(), meta(N)
    with meter:
        y = x + x
        z = (y * y) * y  # y, y·y and z at once
        del y
    assert (meter.peak, meter.live) == (3 * N * FLOAT32, N * FLOAT32)
    del z
    assert meter.live == 0


def test_views_and_changes_in_place_take_nothing():
    meter, x = Meter(), meta(N)
    with meter:
        y = (x + 1).view(10, -1).t()
        y.mul_(2)
    assert meter.peak == N * FLOAT32


def test_what_was_known_before_is_left_out():
    meter, x = Meter(), meta(N)
    meter.known([x])
    with meter:
        y = x[: N // 2]
    assert meter.peak == 0
    del y


def test_a_chain_of_linear_layers_keeps_one_input_a_layer():
    layers, rows, width = 5, 7, 16
    network, meter = nn.Sequential(*(nn.Linear(width, width, device="meta") for _ in range(layers))), Meter()
    x = meta(rows, width)
    meter.known([*network.parameters(), x])
    with meter:
        out = network(x)
    assert meter.live == layers * rows * width * FLOAT32  # of each layer the output; the first input was there
    assert meter.operations == layers * 2 * rows * width * width
    del out


def test_checkpointed_blocks_keep_their_inputs_alone():
    layers, rows, width = 4, 32, 64
    blocks = [
        nn.Sequential(*(nn.Sequential(nn.Linear(width, width, device="meta"), nn.Sigmoid()) for _ in range(3))) for _ in range(layers)
    ]
    meter = Meter()
    rules = DeviceRules(meter)
    meter.known(parameter for block in blocks for parameter in block.parameters())
    x = meta(rows, width, requires_grad=True)
    with rules, meter:
        for block in blocks:
            x = rules.checkpoint(block, x)
    assert meter.live == layers * rows * width * FLOAT32
    forward = meter.operations
    with meter:
        torch.autograd.backward(x, torch.empty_like(x))
    assert meter.operations == 4 * forward  # forward, once more, and twice as much for the two gradients


def test_attention_keeps_queries_keys_values_the_output_and_one_number_a_query():
    batch, heads, queries, keys, width = 2, 3, 8, 12, 16
    q, k, v = (meta(batch, heads, n, width, dtype=torch.bfloat16, requires_grad=True) for n in (queries, keys, keys))
    meter = Meter()
    with DeviceRules(meter, torch.bfloat16), meter:
        out = nn.functional.scaled_dot_product_attention(q, k, v)
    assert out.shape == q.shape
    assert meter.live == batch * heads * queries * (width * BFLOAT16 + FLOAT32)
    assert meter.operations == 2 * 2 * batch * heads * queries * keys * width


@pytest.mark.parametrize(("full", "expected"), [(True, torch.float32), (False, torch.bfloat16)], ids=["CUDA", "CPU"])
def test_autocast_multiplies_in_the_low_precision_and_normalises_as_the_device_does(full, expected):
    linear, norm, x = nn.Linear(8, 8, device="meta"), nn.LayerNorm(8, device="meta", dtype=torch.bfloat16), meta(2, 8)
    with DeviceRules(Meter(), torch.bfloat16, full=full):
        y = linear(x)
        assert (y.dtype, norm(y).dtype) == (torch.bfloat16, expected)


def test_without_autocast_nothing_is_cast():
    with DeviceRules(Meter()):
        assert nn.Linear(8, 8, device="meta")(meta(2, 8)).dtype == torch.float32


def test_the_same_network_on_real_tensors_takes_the_same_memory():
    setup, rows = setup_of("assets/models/digits_sd3"), 16
    predicted, again = updating(setup, rows).peak, updating(setup, 2 * rows).peak
    network = setup.part.build().to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.zero_()
        parameter.grad = torch.zeros_like(parameter)
    inputs = network_inputs(setup.part.kind, setup.part.config, setup.geometry, rows, torch.float32)
    inputs = {name: torch.zeros(value.shape) for name, value in inputs.items()}
    meter = Meter()
    meter.known([*network.parameters(), *network.buffers(), *(p.grad for p in network.parameters()), *inputs.values()])
    with meter:
        out = network(**inputs, return_dict=False)[0].float()
        torch.autograd.backward(out, torch.zeros_like(out))
    assert predicted == pytest.approx(meter.peak, rel=0.03)
    assert again == pytest.approx(2 * predicted, rel=0.15)


def test_flux_takes_the_operations_that_are_published_for_it():
    cost = evaluating(setup_of("black-forest-labs/FLUX.1-dev", compute=torch.bfloat16, side=1024), 1)
    assert cost.operations == pytest.approx(3719.5e12 / 50, rel=0.01)  # TFLOP of 50 steps at 1024 × 1024 with 512 tokens of text


def test_large_batches_lie_on_the_line_through_smaller_ones():
    setup = setup_of("assets/models/digits_sd3", lora=LoRA(rank=4))
    peaks = [updating(setup, rows).peak for rows in (16, 24, 32)]
    assert peaks[1] - peaks[0] == peaks[2] - peaks[1]
    assert updating(setup, 32).operations == pytest.approx(2 * updating(setup, 16).operations, rel=1e-3)


def test_checkpointing_saves_memory_and_costs_a_forward_pass():
    plain, saving = (updating(setup_of("assets/models/digits_sd3", checkpointing=flag), 8) for flag in (False, True))
    forward = evaluating(setup_of("assets/models/digits_sd3"), 8).operations
    assert saving.peak < 0.7 * plain.peak
    assert plain.operations < saving.operations <= plain.operations + forward


def test_a_lora_is_counted_as_it_is_attached():
    rank = 4
    setup = setup_of("assets/models/digits_sd3", lora=LoRA(rank=rank))
    network = setup.build()
    shapes = [(m.base_layer.in_features, m.base_layer.out_features) for m in network.modules() if hasattr(m, "base_layer")]
    assert sizes(setup).trained == sum(rank * (i + o) for i, o in shapes) > 0
    assert sizes(setup).total == FLOAT32 * (setup.part.parameters + sizes(setup).trained)


def test_blocks_and_the_rest_are_the_whole_network():
    found = sizes(setup_of("assets/models/digits_sd3"))
    assert found.total == found.outside + 3 * found.largest_block or found.largest_block * 3 + found.outside >= found.total


def test_the_network_of_a_reward_grows_with_its_batch():
    from flowrl.train.plan import shared_part

    one, two = (picture_scoring(shared_part("clip_vit_l_14"), rows) for rows in (1, 2))
    assert two.operations == 2 * one.operations
    assert two.peak == pytest.approx(2 * one.peak, rel=0.01)


def test_a_network_whose_call_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"how a DiTTransformer2DModel is called is not known here.*SD3Transformer2DModel"):
        network_inputs("DiTTransformer2DModel", {}, setup_of("assets/models/digits_sd3").geometry, 1, torch.float32)


def test_what_a_pass_takes_does_not_depend_on_the_passes_before_it(tmp_path):
    """Z-Image keeps tables of positions from its first call on; a pass of the update must not find those of the rollout."""
    TINY["z_image"]().save_pretrained(tmp_path)
    setup = setup_of(str(tmp_path), side=32)
    orders = []
    for order in ((passes.evaluating, passes.updating), (passes.updating, passes.evaluating)):
        for kept in vars(passes).values():
            getattr(kept, "cache_clear", lambda: None)()
        orders.append({each.__name__: each(setup, 1) for each in order})
    assert orders[0] == orders[1]
