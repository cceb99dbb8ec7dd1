"""The command that makes the classifiers, and the closed form of the kernel one."""

import logging

import pytest
import torch

from flowrl.config import asset_path
from flowrl.models.weights import read_safetensors
from flowrl.train.data import digit_scans
from rewards.digits import grey_scans
from rewards.legibility import kernel_logits
from rewards.train_digit_classifiers import fit_cnn, fit_kernel, main, unseen_accuracy


def grey(part, count):
    images, labels = digit_scans(part)
    return grey_scans(images[:count], [""] * count), labels[:count]


def shipped(name):
    return read_safetensors(asset_path(f"classifiers/{name}.safetensors"))[0]


def test_the_shipped_kernel_is_what_the_command_makes():
    made, stored = fit_kernel(*grey("heldout", 400)), shipped("digit_kernel")
    assert made.keys() == stored.keys()
    for name, array in made.items():
        torch.testing.assert_close(array, stored[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("kind", "name", "stated"), [("legibility", "digit_cnn", 0.974), ("heldout", "digit_kernel", 0.984)])
def test_accuracy_on_unseen_scans_is_what_the_readme_states(kind, name, stated):
    assert unseen_accuracy(kind, shipped(name)) == pytest.approx(stated, abs=0.002)


def test_kernel_coefficients_solve_the_ridge_equations():
    scans, labels = grey("heldout", 40)
    arrays = fit_kernel(scans, labels, width=1.0, ridge=0.5)
    one_hot = torch.nn.functional.one_hot(labels, 10).float()
    # (K + ridge·1)·α = Y, with K·α read off the fitted function itself
    torch.testing.assert_close(
        kernel_logits(scans, arrays) * arrays["temperature"] + 0.5 * arrays["coefficients"], one_hot, atol=1e-4, rtol=0
    )


def test_the_temperature_is_the_best_for_scans_left_out_one_by_one():
    scans, labels = grey("heldout", 30)
    temperature = fit_kernel(scans, labels)["temperature"]
    left_out = []
    for row in range(30):  # fit again without it: what the closed form saves
        rest = torch.arange(30) != row
        arrays = fit_kernel(scans[rest], labels[rest])
        left_out.append(kernel_logits(scans[row : row + 1], arrays) * arrays["temperature"])

    def surprise(value):
        return torch.nn.functional.cross_entropy(torch.cat(left_out) / value, labels)

    assert surprise(temperature) < min(surprise(0.8 * temperature), surprise(1.25 * temperature))


def test_a_few_steps_of_the_network_already_learn():
    scans, labels = grey("legibility", 400)
    assert unseen_accuracy("legibility", fit_cnn(scans, labels, steps=60)) > 0.8  # chance is 0.1


@pytest.mark.slow
def test_the_command_writes_both_classifiers_and_says_how_good_they_are(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        main(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digit_cnn.safetensors", "digit_kernel.safetensors"]
    accuracies = [float(record.getMessage().split("accuracy ")[1].split()[0]) for record in caplog.records]
    assert min(accuracies) > 0.96
