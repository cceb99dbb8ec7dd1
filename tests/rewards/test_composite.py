"""Several rewards as one."""

import pytest
import torch

from flowrl.config import instantiate
from flowrl.errors import ConfigError
from flowrl.testing import check_reward
from rewards import Brightness, CompositeReward, HeldoutLegibility, JpegCompressibility, Legibility

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
