"""The weights from before training act inside `reference()`, and only there."""

import pytest
import torch

from flowrl.models import LoRA

both_kinds = pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=8)], ids=["full", "lora"])


@torch.no_grad()
def velocity(model, x):
    return model.field()(x, 0.6, model.encode(["red", "green"]))


@both_kinds
def test_reference_is_the_base_field_before_and_after_training(load, noise, perturb, lora):
    model, base = load(lora=lora), load()
    x = noise(model, 2)
    expected = velocity(base, x)
    with model.reference():
        assert torch.equal(velocity(model, x), expected)
    perturb(model)
    trained = velocity(model, x)
    assert (trained - expected).abs().max() > 1e-2
    for _ in range(2):
        with model.reference():
            assert torch.equal(velocity(model, x), expected)
        assert torch.equal(velocity(model, x), trained)


@both_kinds
def test_reference_first_used_after_training_is_still_the_base_field(load, noise, perturb, lora):
    model, base = load(lora=lora), load()
    x = noise(model, 2)
    perturb(model)
    with model.reference():
        assert torch.equal(velocity(model, x), velocity(base, x))


@both_kinds
def test_reference_between_forward_and_backward_changes_no_gradient(load, noise, perturb, lora):
    gradients = []
    for interrupted in (False, True):
        model = load(lora=lora)
        perturb(model)
        loss = model.field()(noise(model, 2), 0.6, model.encode(["red", "green"])).square().mean()
        if interrupted:
            with model.reference():
                velocity(model, noise(model, 2))
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.trainable_parameters())
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    assert len(gradients[0]) > 0
    assert all(torch.equal(plain, other) for plain, other in zip(*gradients, strict=True))


@both_kinds
def test_reference_gives_back_the_same_trainable_parameters_even_after_an_error(load, perturb, lora):
    model = load(lora=lora)
    perturb(model)
    parameters, values = model.trainable_parameters(), [parameter.clone() for parameter in model.trainable_parameters()]
    with pytest.raises(KeyboardInterrupt), model.reference():
        raise KeyboardInterrupt
    assert [id(parameter) for parameter in model.trainable_parameters()] == [id(parameter) for parameter in parameters]
    assert all(torch.equal(value, parameter) for value, parameter in zip(values, parameters, strict=True))


@both_kinds
def test_reference_acts_through_a_wrapper_of_the_module(load, noise, perturb, lora):
    model, base = load(lora=lora), load()
    wrapped = torch.nn.DataParallel(model.module)
    perturb(model)
    x = noise(model, 2)
    with model.reference(), torch.no_grad():
        through = model.field(wrapped)(x, 0.6, model.encode(["red", "green"]))
    assert torch.equal(through, velocity(base, x))
