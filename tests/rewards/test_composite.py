"""Several rewards as one."""

from dataclasses import dataclass

import pytest
import torch

from flowrl.config import instantiate
from flowrl.errors import ConfigError
from flowrl.testing import check_reward
from flowrl.train.describe import describe
from rewards import (
    BatchScale,
    Brightness,
    CompositeReward,
    FixedScale,
    GroupScale,
    HeldoutLegibility,
    JpegCompressibility,
    Legibility,
    RunningScale,
)

PROMPTS = ["a two", "a five", "a nine"]


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_parts_are_those_of_the_rewards_in_their_order(pictures):
    rewards = (JpegCompressibility(), Legibility(), HeldoutLegibility(), Brightness())
    scores = CompositeReward(rewards=rewards)(pictures, PROMPTS)
    assert list(scores.parts) == ["jpeg", "legibility", "heldout_probability", "heldout_accuracy", "brightness"]
    for reward in rewards:
        for name, part in reward(pictures, PROMPTS).parts.items():
            torch.testing.assert_close(scores.parts[name], part)


def test_weights_that_are_left_out_keep_the_rewards_own():
    reward = CompositeReward(rewards=(Legibility(), HeldoutLegibility()), weights={"heldout_probability": 0.0, "legibility": 2.0})
    assert list(reward.weights.items()) == [("legibility", 2.0), ("heldout_probability", 0.0), ("heldout_accuracy", 1.0)]


def test_composites_nest(pictures):
    inner = CompositeReward(rewards=(Brightness(),), weights={"brightness": 0.5})
    outer = CompositeReward(rewards=(inner, JpegCompressibility()))
    assert dict(outer.weights) == {"brightness": 0.5, "jpeg": 1.0}
    check_reward(outer, pictures, PROMPTS)


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ((), {}, "needs at least one reward, got none"),
        ((Brightness(), JpegCompressibility(), Brightness()), {}, "several rewards have a part named 'brightness'"),
        ((Brightness(),), {"brigtness": 1.0}, "no reward has a part 'brigtness'; did you mean 'brightness'"),
        ((Brightness(),), {"brightness": float("nan")}, "weight of 'brightness' must be finite, got nan"),
    ],
    ids=["none", "twice", "misspelt", "not finite"],
)
def test_a_bad_composition_is_refused(rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        CompositeReward(rewards=rewards, weights=weights)


def test_a_composite_is_built_from_a_config_and_its_errors_have_a_place():
    config = {"target": "rewards.CompositeReward", "rewards": [{"target": "rewards.Brightness"}, {"target": "rewards.Legibility"}]}
    assert dict(instantiate(config | {"weights": {"legibility": 2}}).weights) == {"brightness": 1.0, "legibility": 2.0}
    with pytest.raises(ConfigError, match=r"config\.reward: several rewards have a part named 'brightness'"):
        instantiate(config | {"rewards": [{"target": "rewards.Brightness"}] * 2}, place="config.reward")


# ------------------------------------------------------------------------------------------------------- common scales


def test_a_part_on_a_scale_is_reported_as_it_is_and_trained_on_the_scale(pictures):
    reward = CompositeReward(
        rewards=(Brightness(), JpegCompressibility()),
        weights={"brightness": 0.5},
        normalise={"brightness": FixedScale(mean=0.25, std=0.5)},
    )
    assert list(reward.weights.items()) == [("brightness", 0.0), ("brightness_normalised", 0.5), ("jpeg", 1.0)]
    parts = reward(pictures, PROMPTS).parts
    assert list(parts) == ["brightness", "brightness_normalised", "jpeg"]
    raw = Brightness()(pictures, PROMPTS).parts["brightness"]
    torch.testing.assert_close(parts["brightness"], raw)
    torch.testing.assert_close(parts["brightness_normalised"], (raw - 0.25) * 2)
    check_reward(reward, pictures, PROMPTS)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"brightness": 0.0, "brightness_normalised": 1.0}),
        ({"brightness": 2.0}, {"brightness": 0.0, "brightness_normalised": 2.0}),
        ({"brightness_normalised": 3.0}, {"brightness": 0.0, "brightness_normalised": 3.0}),
        ({"brightness": 0.1, "brightness_normalised": 3.0}, {"brightness": 0.1, "brightness_normalised": 3.0}),
    ],
)
def test_a_weight_belongs_to_the_normalised_part_unless_both_are_named_and_a_described_reward_is_the_same(weights, expected):
    reward = CompositeReward(rewards=(Brightness(),), weights=weights, normalise={"brightness": RunningScale(decay=0.9)})
    assert reward.weights == expected
    assert instantiate(describe(reward)) == reward


def test_the_groups_scale_gives_every_group_mean_zero_and_deviation_one():
    samples = torch.stack([torch.full((3, 2, 2), level) for level in (0.1, 0.3, 0.5, 0.7, 0.2)])
    reward = CompositeReward(rewards=(Brightness(),), normalise={"brightness": GroupScale()})
    assert reward.needs_groups
    parts = reward(samples, ["x"] * 5, torch.tensor([0, 0, 1, 1, 2])).parts
    half = 0.5**0.5  # of two numbers a and b the deviation is |a − b| / √2
    torch.testing.assert_close(parts["brightness_normalised"], torch.tensor([-half, half, -half, half, 0.0]), atol=1e-5, rtol=0)


def test_the_batchs_scale_leaves_rows_without_a_score_out():
    samples = torch.stack([torch.full((3, 2, 2), level) for level in (0.1, torch.nan, 0.3, 0.2)])
    parts = CompositeReward(rewards=(Brightness(),), normalise={"brightness": BatchScale()})(samples, ["x"] * 4).parts
    torch.testing.assert_close(parts["brightness_normalised"], torch.tensor([-1.0, torch.nan, 1.0, 0.0]), atol=1e-5, rtol=0, equal_nan=True)


def test_the_running_scale_is_that_of_past_updates_and_survives_a_checkpoint():
    reward = CompositeReward(rewards=(Brightness(),), normalise={"brightness": RunningScale(decay=0.5, mean=1.0, std=2.0, least_std=0.0)})
    picture = torch.full((1, 3, 2, 2), 0.5)
    assert reward(picture, ["x"]).parts["brightness_normalised"].item() == pytest.approx((0.5 - 1) / 2)
    reward.observe({"brightness": torch.tensor([[1.0, 3.0], [torch.nan, 5.0]])})
    reward.observe({"brightness": torch.tensor([7.0])})
    # weights ½, ½, ½ and 1 of 1, 3, 5 and 7: mean 4.6, mean square 26.6
    expected = (0.5 - 4.6) / (26.6 - 4.6**2) ** 0.5
    assert reward(picture, ["x"]).parts["brightness_normalised"].item() == pytest.approx(expected, rel=1e-5)
    restored = CompositeReward(rewards=(Brightness(),), normalise={"brightness": RunningScale(decay=0.5, least_std=0.0)})
    restored.load_state_dict(reward.state_dict())
    assert torch.equal(restored(picture, ["x"]).parts["brightness_normalised"], reward(picture, ["x"]).parts["brightness_normalised"])


def test_a_part_that_never_varied_stays_finite_under_the_running_scale():
    scale = RunningScale()
    scale.observe(torch.full((8,), 0.1))
    assert scale(torch.tensor([0.1]), torch.zeros(1, dtype=torch.long)).abs() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompositeReward(rewards=(Brightness(),), normalise={"bright": GroupScale()}), "normalise: no reward has a part 'bright'"),
        (lambda: FixedScale(mean=0.0, std=0.0), "mean must be finite and std > 0, got 0.0 and 0.0"),
        (lambda: RunningScale(decay=0.0), r"decay must lie in \(0, 1\]"),
    ],
)
def test_a_bad_scale_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rewards_that_work_elsewhere_are_asked_first(pictures):
    told = []

    @dataclass(frozen=True, kw_only=True)
    class Here(Brightness):
        def __call__(self, samples, prompts):
            told.append("here")
            return Brightness()(samples, prompts)

    @dataclass(frozen=True, kw_only=True)
    class Elsewhere(JpegCompressibility):
        def submit(self, samples, prompts, groups):
            told.append("asked")
            return lambda: (told.append("fetched"), JpegCompressibility()(samples, prompts))[1]

    parts = CompositeReward(rewards=(Here(), Elsewhere()))(pictures, PROMPTS).parts
    assert told == ["asked", "here", "fetched"]
    assert list(parts) == ["brightness", "jpeg"]


def test_a_running_scale_that_is_told_nothing_of_its_part_says_so():
    reward = CompositeReward(rewards=(Brightness(),), normalise={"brightness": RunningScale()})
    with pytest.raises(ValueError, match="waits for the part 'brightness', which the reward around this one does not report"):
        reward.observe({"mine": torch.ones(2)})
