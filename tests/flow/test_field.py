"""Guidance, and fields that stand for networks of another kind."""

import pytest
import torch

from flowrl.flow import ClassifierFreeGuidance, Condition, DiffusionField, VariancePreserving, evaluations_per_state
from flowrl.testing import check_field

STATE = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
LABELS = Condition({"label": torch.tensor([[1.0], [2.0], [3.0]])})
NULL = Condition({"label": torch.tensor([[-1.0]])})


class LabelField:
    """v = label + 10·t + x: every argument shows in the result. Remembers the batch sizes it saw."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, condition):
        self.batches.append(len(x_t))
        assert len(condition) == len(x_t)
        time = torch.as_tensor(t)
        return condition.tensors["label"][:, :, None] + 10 * time.reshape(*time.shape, *(1,) * (3 - time.ndim)) + x_t


def test_guidance_by_hand():
    """Negative −1 and conditional 2 at scale 3: −1 + 3·(2 − (−1)) = 8, plus what both share."""
    guided = ClassifierFreeGuidance(field=LabelField(), scale=3.0, negative=NULL)(STATE, 0.5, LABELS)
    expected = torch.tensor([5.0, 8.0, 11.0])[:, None, None] + 5 + STATE
    torch.testing.assert_close(guided, expected)


@pytest.mark.parametrize(("scale", "label"), [(1.0, 2.0), (0.0, -1.0)], ids=["one is the condition", "zero is the negative"])
def test_guidance_scales_zero_and_one(scale, label):
    guided = ClassifierFreeGuidance(field=LabelField(), scale=scale, negative=NULL)(STATE, 0.5, LABELS)
    torch.testing.assert_close(guided[1], label + 5 + STATE[1])


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=["scalar", "batch", "token"])
def test_guidance_gives_both_halves_the_times_of_their_rows(shape):
    t = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    guided = ClassifierFreeGuidance(field=LabelField(), scale=3.0, negative=NULL)(STATE, t, LABELS)
    shift = torch.tensor([5.0, 8.0, 11.0])[:, None, None]
    torch.testing.assert_close(guided, shift + 10 * t.reshape(*shape, *(1,) * (3 - len(shape))) + STATE)


def test_guidance_is_one_batch_of_twice_the_rows_and_says_so():
    field = LabelField()
    guidance = ClassifierFreeGuidance(field=field, scale=3.0, negative=NULL)
    guidance(STATE, 0.5, LABELS)
    assert field.batches == [6]
    assert evaluations_per_state(guidance) == 2
    assert evaluations_per_state(field) == 1
    assert evaluations_per_state(ClassifierFreeGuidance(field=guidance, scale=2.0, negative=NULL)) == 4


def test_what_both_halves_share_comes_from_the_row_itself():
    """v = label · picture, labels 1, 2, 3 and −1 for the negative: scale 3 gives (−1 + 3·(label + 1)) · picture."""
    condition = Condition({**LABELS.tensors, "picture": torch.tensor([[1.0], [10.0], [100.0]])})

    def field(x_t, _t, seen):
        return (seen.tensors["label"] * seen.tensors["picture"])[:, :, None].expand_as(x_t)

    for negative in (NULL, Condition({**NULL.tensors, "picture": torch.tensor([[7.0]])})):
        guided = ClassifierFreeGuidance(field=field, scale=3.0, negative=negative, shared=("picture",))(STATE, 0.5, condition)
        assert guided[:, 0, 0].tolist() == [5.0, 80.0, 1100.0]


def test_guidance_keeps_the_contract_of_a_field():
    check_field(ClassifierFreeGuidance(field=LabelField(), scale=3.0, negative=NULL), STATE, LABELS)


@pytest.mark.parametrize("scale", [-1.0, float("nan")])
def test_a_negative_guidance_scale_is_refused(scale):
    with pytest.raises(ValueError, match=rf"guidance scale must be >= 0, got {scale}; 1 means no guidance"):
        ClassifierFreeGuidance(field=LabelField(), scale=scale, negative=NULL)


def test_a_negative_condition_of_several_rows_is_refused():
    with pytest.raises(ValueError, match="must have one row, got 3; it is repeated over the batch"):
        ClassifierFreeGuidance(field=LabelField(), scale=2.0, negative=LABELS)


def test_a_negative_condition_with_other_names_is_refused():
    guidance = ClassifierFreeGuidance(field=LabelField(), scale=2.0, negative=Condition({"text": torch.zeros(1, 1)}))
    with pytest.raises(ValueError, match="must have the same names"):
        guidance(STATE, 0.5, LABELS)


def test_a_diffusion_network_sees_its_own_state_and_timestep():
    """At timestep 1 with ᾱ = 0.64: a = 0.8, b = 0.6, so t = 0.6/1.4 and the network's state is 1.4·x_t."""
    seen = {}

    def network(x, timestep, condition):
        seen.update(x=x, timestep=timestep, condition=condition)
        return torch.zeros_like(x)

    path = VariancePreserving(torch.tensor([0.9, 0.64, 0.2], dtype=torch.float64))
    velocity = DiffusionField(network=network, path=path, kind="epsilon")(STATE, 0.6 / 1.4, LABELS)
    assert seen["timestep"] == 1
    assert seen["condition"] is LABELS
    torch.testing.assert_close(seen["x"], 1.4 * STATE)
    torch.testing.assert_close(velocity, -1.4 * STATE / 0.8)  # noise 0, so data = x/a and velocity = −data
    assert velocity.dtype == torch.float32


def test_a_diffusion_field_takes_a_timestep_for_every_row():
    path = VariancePreserving(torch.linspace(0.99, 0.01, 50, dtype=torch.float64))
    field = DiffusionField(network=lambda x, timestep, condition: x * timestep.reshape(-1, 1, 1).float(), path=path, kind="sample")
    together = field(STATE, path.times()[[5, 20, 49]], LABELS)
    alone = torch.cat([field(STATE[i : i + 1], path.times()[k], LABELS[[i]]) for i, k in enumerate([5, 20, 49])])
    torch.testing.assert_close(together, alone)
