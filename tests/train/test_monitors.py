import math

import pytest
import torch

from flowrl.train.monitors import colour_entropy, edge_density, pairwise_diversity, within_prompt_diversity


def flat(*levels: float, side: int = 4) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()


def test_equal_pictures_have_no_diversity():
    assert pairwise_diversity(flat(0.3, 0.3, 0.3)) == 0


def test_diversity_is_the_mean_over_all_pairs():
    # |0 - 1|, |0 - 0.5|, |1 - 0.5| = 1, 0.5, 0.5
    assert pairwise_diversity(flat(0.0, 1.0, 0.5)).item() == pytest.approx(2 / 3)


def test_distance_of_two_pictures_is_the_root_mean_square_over_pixels():
    images = flat(0.0, 0.0)
    images[1, 0] = 1.0  # one of three channels differs by 1 everywhere
    assert pairwise_diversity(images).item() == pytest.approx(math.sqrt(1 / 3))


def test_diversity_is_taken_within_each_prompt_and_unknown_for_a_single_picture():
    images = flat(0.0, 0.1, 1.0, 0.3, 0.9)
    diversity = within_prompt_diversity(images, torch.tensor([4, 2, 4, 2, 7]))
    assert diversity[:2].tolist() == pytest.approx([0.2, 1.0])
    assert diversity[2].isnan()


@pytest.mark.parametrize(("axis", "slope"), [(-1, 0.1), (-2, 0.05)], ids=["across", "down"])
def test_a_grey_ramp_has_the_edge_density_of_its_slope(axis, slope):
    ramp = torch.arange(6) * slope
    image = (ramp if axis == -1 else ramp[:, None]).expand(1, 3, 6, 6)
    assert edge_density(image).item() == pytest.approx(slope, rel=1e-5)


def test_edges_in_two_directions_add_like_a_vector():
    x, y = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    image = (0.03 * x + 0.04 * y).expand(1, 3, 5, 5)
    assert edge_density(image).item() == pytest.approx(0.05, rel=1e-5)


def test_edges_are_seen_in_brightness_with_bt601_weights():
    image = torch.zeros(1, 3, 6, 6)
    image[:, 1] = torch.arange(6) * 0.1  # green alone
    assert edge_density(image).item() == pytest.approx(0.0587, rel=1e-5)


def test_each_picture_has_its_own_edge_density():
    ramp = (torch.arange(6) * 0.1).expand(3, 6, 6)
    torch.testing.assert_close(edge_density(torch.stack([torch.zeros(3, 6, 6), ramp])), torch.tensor([0.0, 0.1]))


def test_one_colour_has_no_entropy_and_two_alike_shares_have_ln_2():
    halves = flat(0.0, 0.4)
    halves[1, :, :2] = 0.9
    torch.testing.assert_close(colour_entropy(halves), torch.tensor([0.0, math.log(2)], dtype=torch.float64))


def test_all_64_cells_alike_have_entropy_ln_64():
    level = torch.arange(4) / 4 + 0.1
    cells = torch.cartesian_prod(level, level, level).T.view(1, 3, 8, 8)
    assert colour_entropy(cells).item() == pytest.approx(math.log(64))


def test_the_brightest_value_falls_into_the_last_cell_of_the_histogram():
    image = flat(0.8)
    image[:, :, 0] = 1.0
    assert colour_entropy(image).item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_diversity(flat(0.5)), "at least two images of a prompt, got 1"),
        (lambda: within_prompt_diversity(flat(0.1, 0.2), torch.tensor([0])), r"one entry per image, got \(1,\) for 2 images"),
        (lambda: edge_density(torch.zeros(1, 3, 2, 9)), r"at least 3 x 3 pixels, got \(2, 9\)"),
        (lambda: colour_entropy(torch.zeros(2, 1, 4, 4)), r"shape \(batch, 3, height, width\), got \(2, 1, 4, 4\)"),
    ],
)
def test_monitors_refuse_what_they_cannot_measure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_video_measures_as_the_mean_of_its_frames():
    videos = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for monitor in (edge_density, colour_entropy):
        frames = monitor(videos.flatten(0, 1)).view(2, 3)
        torch.testing.assert_close(monitor(videos), frames.mean(1))


def test_two_videos_that_differ_in_one_of_four_frames_by_one_half_are_a_quarter_apart():
    videos = torch.zeros(2, 4, 3, 2, 2)
    videos[1, 2] = 0.5
    torch.testing.assert_close(pairwise_diversity(videos).item(), 0.25)
