import pytest
import torch
from gate_world import stirred
from safetensors.torch import load_file, save_file

from flowrl.errors import CheckpointError, ConfigError
from flowrl.shapes import seeded_generator
from robot.evaluation.provenance import checkpoint_hashes
from robot.gating.file import GATES, NoiseGateFile, load_gate, model_fingerprint, save_gate
from robot.gating.toy import TOY_SENSOR, TwoModes
from robot.noise_gate import ConstantGate, NoiseGate
from robot.types import Observation
from samplers import PerTokenSchedule

TOY = TwoModes()


def _gate(model, **settings):
    return stirred(NoiseGate.for_model(model, **settings))


@pytest.fixture
def model():
    return TOY.load()


def test_a_gate_comes_back_as_it_was(tmp_path, model):
    gate = _gate(model, boundary="finish", action="gated", log_std_max=1.0, width=16)
    again = load_gate(save_gate(tmp_path / "gate.safetensors", gate, model))
    assert type(again) is NoiseGate
    assert again.settings == gate.settings
    for name, value in gate.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert not any(weight.requires_grad for weight in again.parameters())


def test_a_constant_gate_comes_back_too(tmp_path, model):
    gate = ConstantGate(3, steps=3).start_from((0.5, 1.5, 1.0))
    again = load_gate(save_gate(tmp_path / "gate.safetensors", gate, model))
    assert type(again) is ConstantGate
    assert torch.equal(again.mean, gate.mean)


def test_a_gate_file_is_a_policy_that_acts_under_the_gate(tmp_path, model):
    gate = _gate(model)
    save_gate(tmp_path / "gate.safetensors", gate, model, source=TOY, training={"updates": 3})
    seen = Observation({TOY_SENSOR: torch.zeros(8, 1, 1)})
    expected = model.with_schedule(gate).act(seen, seeded_generator(1)).values
    for file in (NoiseGateFile(path=str(tmp_path)), NoiseGateFile(path=str(tmp_path / "gate.safetensors"), model=TOY)):
        assert torch.equal(file.load().act(seen, seeded_generator(1)).values, expected)
    assert not torch.equal(model.act(seen, seeded_generator(1)).values, expected)
    assert list(checkpoint_hashes(NoiseGateFile(path=str(tmp_path)))) == [str(tmp_path)]
    assert GATES.read_training(tmp_path) == {"updates": 3}


def test_a_gate_for_a_model_takes_its_number_of_steps_unless_told(model):
    assert NoiseGate.for_model(model).steps == 3
    assert NoiseGate.for_model(model, steps=7).steps == 7


def test_another_model_is_refused_unless_it_is_meant(tmp_path, model):
    save_gate(tmp_path / "gate.safetensors", _gate(model), model)
    other = TwoModes(std=0.2)
    with pytest.raises(ConfigError, match="was trained on other weights"):
        NoiseGateFile(path=str(tmp_path), model=other).load()
    assert NoiseGateFile(path=str(tmp_path), model=other, transfer=True).load().schedule.steps == 3


def test_a_model_of_other_latents_is_refused(tmp_path, model):
    save_gate(tmp_path / "gate.safetensors", _gate(model), model)
    with pytest.raises(ConfigError, match="reads 3 latents of 1 × 1 numbers, the model predicts 4 of 1 × 1"):
        NoiseGateFile(path=str(tmp_path), model=TwoModes(frames=4), transfer=True).load()


def test_a_gate_of_an_unknown_model_needs_one(tmp_path, model):
    save_gate(tmp_path / "gate.safetensors", _gate(model), model)
    with pytest.raises(ConfigError, match="does not say which model"):
        NoiseGateFile(path=str(tmp_path)).load()


def test_the_fingerprint_is_of_the_weights_and_not_of_the_schedule(model):
    assert model_fingerprint(model) == model_fingerprint(model.with_schedule(PerTokenSchedule.masked(2, 3)))
    assert model_fingerprint(model) != model_fingerprint(TwoModes(std=0.2).load())


def test_an_altered_gate_is_refused(tmp_path, model):
    from safetensors import safe_open

    path = save_gate(tmp_path / "gate.safetensors", _gate(model), model)
    with safe_open(path, framework="pt") as file:
        card = file.metadata()
    tensors = load_file(path)
    tensors["gate.log_std"] += 1
    save_file(tensors, path, metadata=card)
    with pytest.raises(CheckpointError, match="was altered"):
        load_gate(path)
