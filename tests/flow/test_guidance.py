"""Guidance that keeps or limits a velocity's length, or ends at some noise level."""

import pytest
import torch

from flowrl.flow import (
    ClassifierFreeGuidance,
    Condition,
    IntervalGuidance,
    NormKeepingGuidance,
    NormLimitingGuidance,
    evaluations_per_state,
    patch_norm,
    row_norm,
)

NEGATIVE = Condition({"v": torch.tensor([[0.0, 4.0]])})
CONDITIONAL = Condition({"v": torch.tensor([[3.0, 4.0], [0.0, 0.0]])})


class Told:
    """A field whose velocity stands in its condition; it counts the rows of its calls."""

    def __init__(self):
        self.rows = []

    def __call__(self, x_t, t, condition):
        self.rows.append(len(x_t))
        time = torch.as_tensor(t, dtype=torch.float32)
        assert time.shape in ((), (len(x_t),))
        return condition.tensors["v"].reshape(x_t.shape)


def called(guidance, t=0.5):
    return guidance(torch.zeros(2, 1, 1, 2), t, CONDITIONAL)[:, 0, 0]


def test_plain_guidance_of_these_two_velocities_is_known_by_hand():
    guidance = ClassifierFreeGuidance(field=Told(), scale=3.0, negative=NEGATIVE)
    torch.testing.assert_close(called(guidance), torch.tensor([[9.0, 4.0], [0.0, -8.0]]))


def test_norm_keeping_guidance_has_the_guided_direction_and_the_conditional_length():
    guidance = NormKeepingGuidance(field=Told(), scale=3.0, negative=NEGATIVE, norm=row_norm)
    expected = torch.tensor([[9.0, 4.0], [0.0, -8.0]]) * torch.tensor([[5 / 97**0.5], [0.0]])
    torch.testing.assert_close(called(guidance), expected)


def test_a_guided_velocity_of_length_zero_stays_zero():
    guidance = NormKeepingGuidance(field=Told(), scale=1.0, negative=NEGATIVE, norm=row_norm)
    torch.testing.assert_close(called(guidance)[1], torch.zeros(2))


@pytest.mark.parametrize(
    ("limit", "factor"), [(1.0, 5 / 97**0.5), (1.5, 7.5 / 97**0.5), (2.0, 1.0)], ids=["as long", "longer", "short enough"]
)
def test_norm_limiting_guidance_shortens_what_is_longer_than_the_limit(limit, factor):
    guidance = NormLimitingGuidance(field=Told(), scale=3.0, negative=NEGATIVE, limit=limit)
    torch.testing.assert_close(called(guidance), torch.tensor([[9.0 * factor, 4.0 * factor], [0.0, 0.0]]))


def test_the_length_that_is_limited_is_that_of_the_whole_state():
    rows = torch.tensor([[3.0, 0.0, 0.0, 4.0]])  # of length 5 as one state, 3 and 4 as rows
    negative, condition = Condition({"v": torch.zeros(1, 4)}), Condition({"v": rows})
    guidance = NormLimitingGuidance(field=Told(), scale=2.0, negative=negative, limit=1.2)
    torch.testing.assert_close(guidance(torch.zeros(1, 1, 2, 2), 0.5, condition).flatten(), 1.2 * rows[0])


def test_patch_norm_is_the_length_of_a_tokens_channels():
    velocity = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    norms = patch_norm(velocity)
    assert norms.shape == (3, 1, 4, 6)
    for row, column in [(0, 0), (2, 4), (2, 0)]:
        patch = velocity[:, :, row : row + 2, column : column + 2].flatten(1)
        torch.testing.assert_close(norms[:, 0, row : row + 2, column : column + 2], patch.norm(dim=1)[:, None, None].expand(3, 2, 2))


def test_guidance_in_an_interval_is_the_guidance_above_its_end_and_the_bare_field_below():
    field = Told()
    guidance = IntervalGuidance(guidance=ClassifierFreeGuidance(field=field, scale=3.0, negative=NEGATIVE), until=0.5)
    guided, bare = torch.tensor([[9.0, 4.0], [0.0, -8.0]]), CONDITIONAL.tensors["v"]
    torch.testing.assert_close(called(guidance, 0.5), guided)
    torch.testing.assert_close(called(guidance, 0.49), bare)
    torch.testing.assert_close(called(guidance, torch.tensor([0.9, 0.1])), torch.stack([guided[0], bare[1]]))
    torch.testing.assert_close(called(guidance, torch.tensor([0.1, 0.9])), torch.stack([bare[0], guided[1]]))
    assert field.rows == [4, 2, 3, 3], "one call each, and only guided rows pay twice"
    assert evaluations_per_state(guidance) == 2


def test_guidance_in_an_interval_has_the_gradients_of_both_its_parts():
    weight = torch.tensor(1.0, requires_grad=True)

    def field(x_t, t, condition):
        return weight * condition.tensors["v"].reshape(x_t.shape)

    guidance = IntervalGuidance(guidance=ClassifierFreeGuidance(field=field, scale=3.0, negative=NEGATIVE), until=0.5)
    called(guidance, torch.tensor([0.1, 0.9])).sum().backward()
    assert weight.grad.item() == pytest.approx(3 + 4 - 8)


def test_what_both_halves_share_comes_from_each_row_itself():
    seen = []

    def field(x_t, t, condition):
        seen.append(condition.tensors["picture"].flatten().tolist())
        return condition.tensors["v"].reshape(x_t.shape)

    plain = ClassifierFreeGuidance(field=field, scale=3.0, negative=NEGATIVE, shared=("picture",))
    condition = Condition({**CONDITIONAL.tensors, "picture": torch.tensor([[1.0], [2.0]])})
    IntervalGuidance(guidance=plain, until=0.5)(torch.zeros(2, 1, 1, 2), torch.tensor([0.1, 0.9]), condition)
    assert seen == [[2.0, 1.0, 2.0]]


@pytest.mark.parametrize("until", [-0.1, 1.1, float("nan")])
def test_an_end_outside_the_noise_levels_is_refused(until):
    with pytest.raises(ValueError, match=r"until must be in \[0, 1\]"):
        IntervalGuidance(guidance=ClassifierFreeGuidance(field=Told(), scale=3.0, negative=NEGATIVE), until=until)


def test_a_time_per_token_is_refused():
    guidance = IntervalGuidance(guidance=ClassifierFreeGuidance(field=Told(), scale=3.0, negative=NEGATIVE), until=0.5)
    with pytest.raises(ValueError, match=r"takes a time of shape \(\) or \(2,\), got \(2, 1\)"):
        called(guidance, torch.full((2, 1), 0.5))


def test_a_limit_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"limit must be > 0, got 0; use ClassifierFreeGuidance"):
        NormLimitingGuidance(field=Told(), scale=3.0, negative=NEGATIVE, limit=0)
