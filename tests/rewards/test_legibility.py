"""The two digit classifiers as rewards, against the stored arrays by another route and against real scans."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import log_softmax, softmax

from flowrl.config import asset_path
from flowrl.errors import CheckpointError
from flowrl.models.weights import read_safetensors
from flowrl.testing import check_reward
from flowrl.train.data import DIGIT_WORDS, digit_scans
from rewards import HeldoutLegibility, Legibility


def arrays_of(name):
    arrays, _ = read_safetensors(asset_path(f"classifiers/{name}.safetensors"))
    return {key: array.double().numpy() for key, array in arrays.items()}


@pytest.fixture(scope="module")
def scans():
    images, labels = digit_scans("test", 16)
    return images, [f"the digit {DIGIT_WORDS[label]}" for label in labels.tolist()]


def block_means(image):
    """Luma of a 16 x 16 picture, averaged over 2 x 2 blocks; float64 numpy."""
    grey = np.tensordot([0.299, 0.587, 0.114], image.double().numpy(), axes=1)
    return grey.reshape(8, 2, 8, 2).mean(axis=(1, 3))


def cnn_by_hand(grey, arrays):
    layer = grey[None]
    for name in ("conv1", "conv2"):
        maps = [
            sum(correlate2d(channel, kernel, mode="same") for channel, kernel in zip(layer, kernels, strict=True)) + bias
            for kernels, bias in zip(arrays[f"{name}.weight"], arrays[f"{name}.bias"], strict=True)
        ]
        layer = np.maximum(np.stack(maps), 0)
    pooled = layer.reshape(32, 4, 2, 4, 2).max(axis=(2, 4)).reshape(-1)
    hidden = np.maximum(arrays["hidden.weight"] @ pooled + arrays["hidden.bias"], 0)
    return arrays["output.weight"] @ hidden + arrays["output.bias"]


def test_legibility_is_the_log_softmax_of_the_stored_network_worked_out_with_numpy(scans):
    images, prompts = scans
    arrays = arrays_of("digit_cnn")
    expected = [
        log_softmax(cnn_by_hand(block_means(image), arrays))[DIGIT_WORDS.index(prompt.split()[-1])]
        for image, prompt in zip(images[:5], prompts[:5], strict=True)
    ]
    scores = Legibility()(images[:5], prompts[:5]).parts["legibility"]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=1e-5)


def test_heldout_probability_is_the_softmax_of_the_stored_kernel_worked_out_with_numpy(scans):
    images, _ = scans
    arrays = arrays_of("digit_kernel")
    x = block_means(images[0]).reshape(-1)
    kernel = np.exp(-((arrays["scans"] - x) ** 2).sum(axis=1) / (2 * arrays["width"] ** 2))
    expected = softmax(kernel @ arrays["coefficients"] / arrays["temperature"])
    scores = HeldoutLegibility()(images[:1].repeat(10, 1, 1, 1), [f"a {word}" for word in DIGIT_WORDS]).parts
    torch.testing.assert_close(scores["heldout_probability"], torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=1e-4)
    assert scores["heldout_accuracy"].tolist() == [float(digit == expected.argmax()) for digit in range(10)]


def test_both_classifiers_read_real_scans_that_no_classifier_has_seen(scans):
    images, prompts = scans
    surely = Legibility()(images, prompts).parts["legibility"] > math.log(0.5)
    assert surely.float().mean() >= 0.95  # more than half of the probability on the right digit
    heldout = HeldoutLegibility()(images, prompts).parts
    assert heldout["heldout_accuracy"].mean() >= 0.96
    assert heldout["heldout_probability"].mean() >= 0.9


def test_a_wrong_prompt_scores_far_below_the_right_one(scans):
    images, prompts = scans
    wrong = [f"a {DIGIT_WORDS[(DIGIT_WORDS.index(prompt.split()[-1]) + 1) % 10]}" for prompt in prompts]
    right, other = (Legibility()(images, texts).parts["legibility"].mean() for texts in (prompts, wrong))
    assert right > -0.3
    assert other < -3
    assert HeldoutLegibility()(images, wrong).parts["heldout_accuracy"].mean() < 0.02


@pytest.mark.parametrize("reward", [Legibility(), HeldoutLegibility()], ids=["legibility", "heldout"])
def test_digit_rewards_keep_the_contract_of_a_reward(reward, scans):
    images, prompts = scans
    check_reward(reward, images[:6], prompts[:6])


@pytest.mark.parametrize("reward", [Legibility(), HeldoutLegibility()], ids=["legibility", "heldout"])
def test_digit_rewards_take_any_dtype_and_larger_pictures(reward, scans):
    images, prompts = scans[0][:8], scans[1][:8]
    larger = torch.nn.functional.interpolate(images, scale_factor=2)  # each pixel four times: the same block means
    for name, expected in reward(images, prompts).parts.items():
        torch.testing.assert_close(reward(larger, prompts).parts[name], expected, atol=1e-4, rtol=1e-4)
        half = reward(images.bfloat16(), prompts).parts[name]
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, expected, atol=0.1, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("reward", [Legibility(), HeldoutLegibility()], ids=["legibility", "heldout"])
def test_digit_rewards_score_on_the_device_of_the_samples(reward, scans):
    images, prompts = scans
    for name, expected in reward(images, prompts).parts.items():
        scores = reward(images.cuda(), prompts).parts[name]
        assert scores.device.type == "cuda"
        torch.testing.assert_close(scores.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("reward", [Legibility(), HeldoutLegibility()], ids=["legibility", "heldout"])
def test_a_picture_with_a_nan_pixel_scores_nan_and_no_other_does(reward, scans):
    images, prompts = scans[0][:3].clone(), scans[1][:3]
    images[1, 0, 3, 4] = float("nan")
    for part in reward(images, prompts).parts.values():
        assert part.isnan().tolist() == [False, True, False]


def test_a_missing_classifier_is_refused_when_the_reward_is_made():
    with pytest.raises(CheckpointError, match="train_digit_classifiers"):
        Legibility(classifier="assets/classifiers/nothing.safetensors")


def test_one_kind_of_classifier_is_refused_in_place_of_the_other():
    with pytest.raises(CheckpointError, match="not this kind of classifier"):
        HeldoutLegibility(classifier="assets/classifiers/digit_cnn.safetensors")
