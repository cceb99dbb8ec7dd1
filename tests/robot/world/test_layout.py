"""Frames and a chunk as one state."""

import pytest
import torch

from robot.world.layout import Layout


def test_packing_by_hand_pads_the_narrower_rows():
    layout = Layout(frames=1, tokens=1, channels=2, horizon=3, dof=1)
    x = layout.pack(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[3.0], [4.0], [5.0]]]))
    assert x.tolist() == [[[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]]


@pytest.mark.parametrize("sizes", [(4, 3, 6, 16, 2), (2, 1, 1, 5, 3), (1, 4, 8, 2, 2)])
def test_unpacking_gives_back_what_was_packed(sizes):
    layout = Layout(**dict(zip(("frames", "tokens", "channels", "horizon", "dof"), sizes, strict=True)))
    latents, actions = torch.randn(2, *sizes[:3]), torch.randn(2, *sizes[3:])
    x = layout.pack(latents, actions)
    assert x.shape == (2, *layout.shape)
    assert torch.equal(layout.latents(x), latents)
    assert torch.equal(layout.actions(x), actions)


def test_noise_is_standard_normal_inside_and_zero_in_the_padding():
    layout = Layout(frames=2, tokens=2, channels=2, horizon=8, dof=1)
    x = layout.noise(20000, torch.Generator().manual_seed(0))
    assert (x[:, :2, 4:] == 0).all()
    for part in (layout.latents(x), layout.actions(x)):
        assert part.mean().item() == pytest.approx(0, abs=0.01)
        assert part.std().item() == pytest.approx(1, abs=0.01)


def test_a_row_s_noise_depends_on_its_own_generator_alone():
    layout = Layout(frames=2, tokens=1, channels=2, horizon=2, dof=1)
    both = layout.noise(2, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    assert torch.equal(both[1:], layout.noise(1, [torch.Generator().manual_seed(4)]))


def test_a_scalar_a_batch_and_a_row_time_meet():
    layout = Layout(frames=2, tokens=1, channels=1, horizon=1, dof=1)
    x = torch.zeros(2, *layout.shape)
    assert layout.row_times(0.5, x).tolist() == [[0.5] * 3] * 2
    assert layout.row_times(torch.tensor([0.25, 0.75]), x).tolist() == [[0.25] * 3, [0.75] * 3]
    torch.testing.assert_close(layout.times(torch.tensor([[0.1, 0.2]]), 0.3), torch.tensor([[0.1, 0.2, 0.3]]))


def test_foreign_shapes_are_refused():
    layout = Layout(frames=2, tokens=1, channels=1, horizon=1, dof=1)
    with pytest.raises(ValueError, match=r"must be \(1, 2, 1, 1\) and \(1, 1, 1\), got \(1, 3, 1, 1\)"):
        layout.pack(torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        Layout(frames=0, tokens=1, channels=1, horizon=1, dof=1)
