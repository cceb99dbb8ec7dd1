"""A reward of pictures on the frames of a video."""

from dataclasses import dataclass

import pytest
import torch

from flowrl.rl import RewardBatch, submit_scores
from flowrl.testing import check_reward
from rewards import Brightness, FrameReward


def videos(*frames):
    """One row per argument, whose numbers are the brightness of its frames."""
    return torch.tensor(frames).view(len(frames), -1, 1, 1, 1).expand(-1, -1, 3, 4, 4).contiguous()


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(None, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (2, [0, 4]), (3, [0, 2, 4]), (1, [2])],
)
def test_the_frames_are_spread_evenly_from_the_first_to_the_last(frames, expected):
    assert FrameReward(reward=Brightness(), frames=frames).chosen(5) == expected


def test_a_part_is_the_mean_over_the_chosen_frames_of_each_video():
    scores = FrameReward(reward=Brightness(), frames=2)(videos([0.0, 1.0, 0.5], [0.2, 0.0, 0.4]), ["a", "b"])
    torch.testing.assert_close(scores.parts["brightness"], torch.tensor([0.25, 0.3]))


def test_it_is_a_reward_whose_rows_do_not_mix():
    samples = torch.rand(3, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    check_reward(FrameReward(reward=Brightness(), frames=3), samples, ["a", "b", "c"])


@dataclass(frozen=True, kw_only=True)
class PromptLength:
    """Length of the prompt, NaN for a black picture."""

    weights = {"length": 1.0}  # noqa: RUF012

    def __call__(self, samples, prompts):
        scores = torch.tensor([float(len(prompt)) for prompt in prompts])
        return RewardBatch({"length": scores.where(samples.amax((1, 2, 3)) > 0, torch.nan)})


def test_every_frame_has_its_videos_prompt_and_a_frame_without_a_score_leaves_the_video_without_one():
    scores = FrameReward(reward=PromptLength(), frames=None)(videos([0.5, 0.5], [0.5, 0.0], [0.1, 0.2]), ["a", "bb", "ccc"])
    torch.testing.assert_close(scores.parts["length"], torch.tensor([1.0, torch.nan, 3.0]), equal_nan=True)


@dataclass(frozen=True, kw_only=True)
class Brightest:
    """1 for the brightest picture of its group."""

    needs_groups = True
    weights = {"wins": 1.0}  # noqa: RUF012

    def __call__(self, samples, prompts, groups):
        best = {int(group): samples[groups == group].mean((1, 2, 3)).max() for group in groups}
        means = zip(samples.mean((1, 2, 3)), groups.tolist(), strict=True)
        return RewardBatch({"wins": torch.tensor([float(mean == best[group]) for mean, group in means])})


def test_a_reward_that_compares_sees_the_same_frame_of_the_videos_of_a_group():
    samples = videos([0.1, 0.9], [0.2, 0.3], [0.8, 0.8], [0.7, 0.9])
    reward = FrameReward(reward=Brightest(), frames=None)
    scores = submit_scores(reward, samples, ["a", "a", "b", "b"], torch.tensor([0, 0, 1, 1]))()
    torch.testing.assert_close(scores.parts["wins"], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    assert reward.needs_groups
    with pytest.raises(ValueError, match="needs groups; give the number"):
        reward(samples, ["a", "a", "b", "b"])


def test_pictures_and_missing_prompts_are_refused():
    reward = FrameReward(reward=Brightness())
    with pytest.raises(ValueError, match=r"must be videos .*, got \(2, 3, 4, 4\) and 2 prompts; pictures need no FrameReward"):
        reward(torch.rand(2, 3, 4, 4), ["a", "b"])
    with pytest.raises(ValueError, match=r"got \(1, 2, 3, 4, 4\) and 2 prompts"):
        reward(videos([0.1, 0.2]), ["a", "b"])
    with pytest.raises(ValueError, match="frames must be at least 1, got 0; None is all"):
        FrameReward(reward=Brightness(), frames=0)


def test_a_video_given_to_a_reward_of_pictures_is_told_of_the_frame_reward():
    with pytest.raises(ValueError, match=r"got \(1, 2, 3, 4, 4\); score videos with a rewards.FrameReward"):
        Brightness()(videos([0.1, 0.2]), ["a"])
