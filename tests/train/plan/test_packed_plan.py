"""Plans of networks whose frozen weights are packed: advice, strategies, main memory, and the preset for 24 GB."""

from dataclasses import replace

import pytest
import torch

from flowrl.cli.doctor_plan import show_plan
from flowrl.cli.plan_rewards import reward_networks
from flowrl.config import instantiate, load_config
from flowrl.errors import ConfigError
from flowrl.models import LoRA
from flowrl.models.quantise import quantise_network
from flowrl.train.plan import DDP, FSDP2, Single, Subject, ZeRO2, advise, memory_plan
from flowrl.train.plan.dry_run import Meter
from flowrl.train.plan.inputs import network_inputs
from flowrl.train.plan.passes import updating

GIBI = 2**30


@pytest.fixture(scope="module")
def trainer():
    return instantiate(load_config("image/digits_g2rpo"))


def packed(trainer, form):
    return replace(trainer, model=replace(trainer.model, quantise=form))


def total(trainer):
    return Subject.of(trainer, cuda=False).sizes.total


@pytest.fixture(scope="module")
def lean(trainer):
    """With everything done that comes before in advice."""
    model = replace(
        trainer.model, text_encoders="drop", dtype="bfloat16", gradient_checkpointing=True, decoder="offload", decoder_dtype="bfloat16"
    )
    sampler, update = replace(trainer.sampler, max_batch=1), replace(trainer.update, micro_batch=1)
    fields = {"sampler": sampler, "update": update, "evaluation": None, "reward_batch": 1, "ema_decay": None}
    return replace(trainer, model=replace(model, decode_batch=1), **fields)


def test_advice_ends_with_eight_bits_then_four_where_they_can_be_had(lean):
    def forms(trainer, strategy):
        return [c.value for c in advise(Subject.of(trainer, cuda=False), strategy, 1000).changes if c.place == "model.quantise"]

    assert forms(lean, Single()) == ["nf4"]  # in place of int8, which came before
    assert forms(replace(lean, model=replace(lean.model, lora=None)), Single()) == []
    assert forms(replace(lean, model=replace(lean.model, compile="network")), Single()) == []
    assert forms(lean, FSDP2(processes=2, per_machine=2)) == []


@pytest.mark.parametrize("strategy", [FSDP2(processes=2, per_machine=2), ZeRO2(processes=2, per_machine=2)], ids=["FSDP 2", "ZeRO-2"])
def test_strategies_that_do_not_know_packed_weights_have_no_plan(trainer, strategy):
    subject = Subject.of(packed(trainer, "nf4"), cuda=False)
    with pytest.raises(ConfigError, match=f"{strategy.name} does not know packed weights; leave model.quantise out"):
        memory_plan(subject, strategy)
    assert memory_plan(subject, DDP(processes=2, per_machine=2)).peak


def test_the_doctor_names_a_strategy_that_does_not_fit_as_a_problem(trainer, tmp_path):
    (tmp_path / "a.yaml").write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_processes: 2\n")
    (problem,) = show_plan(packed(trainer, "nf4"), accelerate=str(tmp_path / "a.yaml"), memory=None)
    assert "FSDP 2 does not know packed weights" in problem


def test_loading_takes_the_memory_of_weights_that_are_not_packed_yet(trainer):
    assert total(packed(trainer, "nf4")) < total(packed(trainer, "int8")) < total(trainer)
    assert Subject.of(packed(trainer, "nf4")).loaded() == Subject.of(trainer).loaded()


@pytest.mark.slow
def test_flux_fits_a_card_of_24_gigabytes_in_four_bits_alone():
    trainer = instantiate(load_config("image/flux1_g2rpo_lora_24gb"))
    subject = Subject.of(trainer, reward_networks(trainer))
    assert memory_plan(subject, Single()).peak < 24e9
    frozen = (subject.sizes.total - 4 * subject.sizes.trained) / GIBI
    assert frozen == pytest.approx(11.9014e9 * (0.5 + 1 / 64 + 4 / 64 / 256) / GIBI, rel=0.03)  # some layers stay in bfloat16
    assert Subject.of(packed(trainer, None)).sizes.total / GIBI > 22


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_the_same_packed_network_on_real_tensors_takes_the_same_memory(trainer, form, compute):
    source = replace(trainer.model, lora=LoRA(rank=2), quantise=form, dtype=str(compute).removeprefix("torch."))
    setup = Subject.of(replace(trainer, model=source), cuda=False).network
    network = setup.part.build().to_empty(device="cpu").requires_grad_(requires_grad=False)
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = torch.full_like(tensor, 0.01, dtype=compute)
    quantise_network(network, form, dtype=compute, device=torch.device("cpu"))
    source.lora.attach(network)
    gradients = [torch.zeros_like(parameter) for parameter in network.parameters() if parameter.requires_grad]
    for parameter, gradient in zip((p for p in network.parameters() if p.requires_grad), gradients, strict=True):
        parameter.grad = gradient
    inputs = network_inputs(setup.part.kind, setup.part.config, setup.geometry, 1, setup.storage)
    inputs = {name: torch.zeros_like(value, device="cpu") for name, value in inputs.items()}
    meter = Meter()
    meter.known([*network.parameters(), *network.buffers(), *gradients, *inputs.values()])
    with setup.rules(meter), meter:
        out = network(**inputs, return_dict=False)[0].float()
    with meter:
        torch.autograd.backward(out, torch.ones_like(out))
    assert updating(setup, 1).peak == pytest.approx(meter.peak, rel=0.03)
