"""Training on several rewards at once: scales that remember, ranks and comparisons within the group."""

import pytest
import torch
from toys import assert_same_run, lines, trainer

from flowrl.train.describe import describe
from rewards import Brightness, CompositeReward, Diversity, GroupScale, JpegCompressibility, PixelFeatures, RunningScale, WithinGroupRank


def reward():
    return CompositeReward(
        rewards=(Brightness(), WithinGroupRank(reward=JpegCompressibility()), Diversity(features=PixelFeatures(side=1))),
        weights={"diversity": 0.1},
        normalise={"brightness": RunningScale(decay=0.5), "diversity": GroupScale()},
    )


def test_a_run_with_a_scale_that_remembers_resumes_bit_for_bit(tmp_path):
    trainer(tmp_path / "whole", reward=reward(), updates=4).run()
    trainer(tmp_path / "run", reward=reward(), updates=2).run()
    trainer(tmp_path / "run", reward=reward(), updates=4).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 4)


def test_the_scale_of_an_update_is_that_of_the_updates_before_it(tmp_path):
    trainer(tmp_path / "run", reward=reward(), updates=3).run()
    told = lines(tmp_path / "run")
    assert {"brightness", "brightness_normalised", "jpeg", "jpeg_rank", "diversity", "diversity_normalised"} <= {
        name.removeprefix("reward/") for name in told[0]
    }
    assert told[0]["reward/brightness_normalised"] == pytest.approx(told[0]["reward/brightness"], abs=1e-6)  # nothing is known yet
    assert abs(told[1]["reward/brightness_normalised"]) < 1.5  # near the mean of the update before, in its deviations
    assert told[0]["reward/jpeg_rank"] == pytest.approx(0.5)
    assert told[0]["reward/diversity_normalised"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("wrap", [lambda inner: WithinGroupRank(reward=inner), lambda inner: CompositeReward(rewards=(inner,))])
def test_a_scale_inside_another_reward_remembers_as_well(wrap, tmp_path):
    def scaled():
        return wrap(CompositeReward(rewards=(Brightness(),), normalise={"brightness": RunningScale(decay=0.5)}))

    trainer(tmp_path / "whole", reward=scaled(), updates=4).run()
    told = lines(tmp_path / "whole")
    assert told[0]["reward/brightness_normalised"] == pytest.approx(told[0]["reward/brightness"], abs=1e-6)
    assert told[1]["reward/brightness_normalised"] != pytest.approx(told[1]["reward/brightness"], abs=1e-2)
    trainer(tmp_path / "run", reward=scaled(), updates=2).run()
    trainer(tmp_path / "run", reward=scaled(), updates=4).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 4)


def test_what_a_run_writes_down_builds_the_same_reward_without_its_memory():
    from flowrl.config import instantiate

    one = reward()
    one.observe({name: torch.rand(4, 2) for name in one.weights})
    other = instantiate(describe(one))
    assert other == one
    assert other.state_dict() != one.state_dict()
