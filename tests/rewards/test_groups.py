"""Rewards that compare the samples of a group: ranks, win rates, diversity."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from flowrl.config import instantiate
from flowrl.errors import RewardError
from flowrl.rl import RewardBatch, check_ready, submit_scores
from flowrl.train.describe import describe
from rewards import Brightness, CompositeReward, Diversity, PixelFeatures, WithinGroupRank
from rewards.pairs import group_pairs, win_rates
from rewards.self_test import run_self_test

GROUPS = torch.tensor([7, 3, 7, 3, 7])


@dataclass(frozen=True, kw_only=True)
class Given:
    """Scores that are given, whatever the picture."""

    scores: tuple[float, ...]
    weights: ClassVar = {"given": 2.0}

    def __call__(self, samples, prompts):
        return RewardBatch({"given": torch.tensor(self.scores)})


def grey(*levels):
    return torch.stack([torch.full((3, 4, 4), level) for level in levels])


def scored(reward, samples, groups=GROUPS):
    return submit_scores(reward, samples, ["x"] * len(samples), groups)().parts


def test_pairs_are_all_pairs_within_a_group():
    assert [row.tolist() for row in group_pairs(GROUPS)] == [[0, 0, 1, 2], [2, 4, 3, 4]]


def test_win_rates_count_draws_half_and_leave_unanswered_comparisons_out():
    pairs = (torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4]))
    rates = win_rates(pairs, torch.tensor([1.0, 0.5, torch.nan, torch.nan]), 5)
    torch.testing.assert_close(rates, torch.tensor([0.75, 0.0, 0.5, torch.nan, torch.nan]), equal_nan=True)


def test_ranks_are_the_share_of_the_others_that_a_sample_beats():
    parts = scored(WithinGroupRank(reward=Given(scores=(5.0, 1.0, -2.0, 1.0, 3.0))), grey(*[0.5] * 5))
    assert parts["given_rank"].tolist() == [1.0, 0.5, 0.0, 0.5, 0.5]
    assert parts["given"].tolist() == [5.0, 1.0, -2.0, 1.0, 3.0]
    assert WithinGroupRank(reward=Given(scores=())).weights == {"given": 0.0, "given_rank": 2.0}


def test_a_sample_without_a_score_has_no_rank_and_is_not_compared():
    scores = (5.0, torch.inf, torch.nan, torch.inf, 3.0)
    parts = scored(WithinGroupRank(reward=Given(scores=scores)), grey(*[0.5] * 5))
    torch.testing.assert_close(parts["given_rank"], torch.tensor([1.0, 0.5, torch.nan, 0.5, 0.0]), equal_nan=True)


def test_diversity_is_half_the_mean_squared_distance_to_the_others():
    samples = grey(0.0, 0.2, 1.0, 0.2, 0.4)  # group 7: 0, 1, 0.4; group 3: twice 0.2
    expected = [(1.0 + 0.16) / 4, 0.0, (1.0 + 0.36) / 4, 0.0, (0.16 + 0.36) / 4]
    parts = scored(Diversity(features=PixelFeatures(side=4)), samples)
    torch.testing.assert_close(parts["diversity"], torch.tensor(expected))


def test_a_broken_picture_is_no_ones_neighbour():
    samples = grey(0.0, 0.2, 1.0, 0.2, 0.4)
    samples[2, 0, 0, 0] = torch.nan
    expected = [0.08, 0.0, torch.nan, 0.0, 0.08]
    torch.testing.assert_close(scored(Diversity(), samples)["diversity"], torch.tensor(expected), equal_nan=True)


def test_diversity_of_clips_features_is_one_minus_the_cosine(tmp_path):
    from tiny_detectors import save_clip

    from rewards import ClipFeatures
    from rewards.clip_models import ClipSource, load_clip
    from rewards.published import CLIP_VIT_L14

    folder = str(save_clip(tmp_path))
    clip = load_clip(ClipSource(checkpoint=folder, published=CLIP_VIT_L14), torch.device("cpu"), torch.float32)
    samples = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    one, other = clip.image_features(clip.pixels(samples))
    reward = Diversity(features=ClipFeatures(checkpoint=folder))
    reward.load()
    parts = scored(reward, samples, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(parts["diversity"], (1 - one @ other).repeat(2))


def test_the_odd_one_out_is_found():
    assert run_self_test(Diversity()).problems == ()


@pytest.mark.parametrize("reward", [Diversity(), WithinGroupRank(reward=Brightness())], ids=["diversity", "rank"])
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "needs groups: the number of each sample's group"),
        (torch.tensor([0, 0]), r"groups must have the shape \(3,\), one number a sample, got \(2,\)"),
        (torch.tensor([0, 0, 1]), "at least two samples in every group; one has a single sample"),
    ],
)
def test_groups_are_checked(reward, groups, message):
    with pytest.raises(ValueError, match=message):
        reward(grey(0.0, 0.5, 1.0), ["x"] * 3, groups)


def test_a_composite_of_rewards_that_compare_asks_for_groups_and_hands_them_on():
    reward = CompositeReward(rewards=(Brightness(), Diversity(), WithinGroupRank(reward=Given(scores=(1, 2, 3, 4, 5)))))
    assert reward.needs_groups
    samples = grey(0.0, 0.2, 1.0, 0.2, 0.4)
    assert scored(reward, samples)["given_rank"].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="compares the samples of a group; give groups"):
        reward(samples, ["x"] * 5)
    assert instantiate(describe(CompositeReward(rewards=(Brightness(), Diversity())))).needs_groups


def test_a_nested_reward_that_is_out_of_reach_is_said_before_anything_is_loaded():
    @dataclass(frozen=True, kw_only=True)
    class Gone(Brightness):
        def check(self):
            raise RewardError("the server is gone")

    with pytest.raises(RewardError, match="the server is gone"):
        check_ready(CompositeReward(rewards=(WithinGroupRank(reward=Gone()),)))


def test_missing_weights_of_features_are_told_by_loading(tmp_path):
    from rewards import ClipFeatures

    Diversity().load()
    with pytest.raises(RewardError, match="none"):
        Diversity(features=ClipFeatures(checkpoint=str(tmp_path / "none"))).load()
