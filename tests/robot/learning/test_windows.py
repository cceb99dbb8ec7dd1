"""Windows over demonstrations: which frames and actions belong together, at the edges too."""

import numpy as np
import pytest
import torch
from demos import SPEC, Given, episode, job, numbered

from flowrl.errors import ConfigError
from robot.demonstrations.data import Demonstrations
from robot.learning import StateEncoder
from robot.learning.material import Batches
from robot.learning.windows import Windows, sensor_stats, split_episodes


def test_a_window_holds_the_frames_up_to_the_present_and_the_actions_around_it():
    windows = Windows.of(numbered(6).episodes, ["state"], horizon=3, history=2, first=1)
    assert len(windows) == 6
    seen, chunk = windows.observation(torch.tensor([3])), windows.chunks(torch.tensor([3]))
    assert seen.values["state"].flatten().tolist() == [2.0, 3.0]
    assert chunk[0, :, 1].tolist() == [2.0, 3.0, 4.0]  # the chunk begins one step in the past


def test_the_edges_of_an_episode_are_repeated_and_never_the_neighbours_steps():
    windows = Windows.of(numbered(3, 2).episodes, ["state"], horizon=4, history=3, first=1)
    rows = torch.tensor([0, 2, 3, 4])  # steps 0 and 2 of episode 0, both steps of episode 1
    seen = windows.observation(rows).values["state"].squeeze(-1)
    assert seen.tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 0], [0, 0, 1]]
    chunks = windows.chunks(rows)
    assert chunks[..., 0].tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    assert chunks[..., 1].tolist() == [[0, 0, 1, 2], [1, 2, 2, 2], [0, 0, 1, 1], [0, 1, 1, 1]]


def test_the_future_of_a_window_is_as_far_ahead_as_asked_and_stays_at_an_episodes_last_frame():
    windows = Windows.of(numbered(6, 3).episodes, ["state"], horizon=1, history=1, first=0, ahead=(2, 4))
    future = windows.to("cpu").future(torch.tensor([0, 2, 4, 6]))["state"]  # steps 0, 2, 4 of episode 0, step 0 of episode 1
    assert future.shape == (4, 2, 1)
    assert future.squeeze(-1).tolist() == [[2, 4], [4, 5], [5, 5], [2, 2]]
    assert windows.later[6].tolist() == [8, 8]  # of its own episode
    assert Windows.of(numbered(2).episodes, ["state"], horizon=1, history=1, first=0).later.shape == (2, 0)


def test_a_horizon_longer_than_an_episode_is_padded():
    windows = Windows.of(numbered(2).episodes, ["state"], horizon=5, history=1, first=0)
    assert windows.chunks(torch.tensor([0, 1]))[..., 1].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_pictures_come_channel_first_in_zero_to_one():
    pixels = np.zeros((2, 4, 5, 3), np.uint8)
    pixels[1, 2, 3] = (255, 51, 0)
    shown = episode(np.zeros((2, 1)), np.zeros((2, 2)), camera=pixels)
    windows = Windows.of([shown], ["camera"], horizon=1, history=1, first=0)
    picture = windows.observation(torch.tensor([1])).values["camera"]
    assert picture.shape == (1, 1, 3, 4, 5)
    torch.testing.assert_close(picture[0, 0, :, 2, 3], torch.tensor([1.0, 0.2, 0.0]))
    assert picture.sum().item() == pytest.approx(1.2)
    ahead = Windows.of([shown], ["camera"], horizon=1, history=1, first=0, ahead=(1,)).future(torch.tensor([0]))["camera"]
    torch.testing.assert_close(ahead, picture)
    assert sensor_stats([shown])["camera"].shape == (3, 4, 5)


def test_statistics_span_all_episodes():
    stats = sensor_stats(numbered(3, 7).episodes)["state"]
    assert (stats.low.item(), stats.high.item()) == (0.0, 6.0)


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.99, 7)])
def test_episodes_are_split_by_share_and_every_one_is_used_once(share, held_out):
    demonstrations = numbered(*range(1, 9))
    train, validation = split_episodes(demonstrations, share, 0)
    assert len(validation) == held_out
    assert sorted(len(part) for part in [*train, *validation]) == list(range(1, 9))
    if held_out == 2:
        assert [len(part) for part in split_episodes(demonstrations, share, 1)[1]] != [len(part) for part in validation]


def test_a_single_episode_is_never_held_out():
    assert [len(part) for part in split_episodes(numbered(3), 0.5, 0)] == [1, 0]


def test_every_window_is_seen_once_per_epoch_and_a_step_needs_no_memory_of_the_ones_before():
    batches = Batches(10, 4, seed=0)
    rows = [batches.rows(step) for step in range(5)]
    both = torch.cat(rows)
    assert sorted(both[:10].tolist()) == sorted(both[10:].tolist()) == list(range(10))
    assert both[:10].tolist() != both[10:].tolist()
    assert Batches(10, 4, seed=0).rows(3).tolist() == rows[3].tolist()
    assert Batches(10, 4, seed=1).rows(0).tolist() != rows[0].tolist()
    assert sorted(Batches(3, 8, seed=0).rows(0).tolist()) in ([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 2, 2, 2])


def test_normalisers_come_from_the_training_episodes_alone(tmp_path):
    lengths = (3, 4, 5, 6)
    material = job(tmp_path, demonstrations=Given(demonstrations=numbered(*lengths)), validation_share=0.25).lesson().material
    (held_out,) = {3, 4, 5, 6} - {len(part) for part in split_episodes(numbered(*lengths), 0.25, 0)[0]}
    longest = max(set(lengths) - {held_out})
    torch.testing.assert_close(material.stats.unnormalise(torch.ones(2))[1], torch.tensor(longest - 1.0))
    assert material.sensors["state"].high.item() == longest - 1
    assert len(material.train) == sum(lengths) - held_out
    assert len(material.validation) == held_out


def test_data_that_cannot_be_learned_from_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there are no episodes to learn from; record some"):
        Windows.of([], ["state"], horizon=1, history=1, first=0)
    broken = numbered(3, 4)
    broken.episodes[1].actions[2, 0] = np.nan  # after the checks of an episode of its own
    with pytest.raises(ConfigError, match="actions of episode 1 are not finite at control step 2; drop the episode"):
        job(tmp_path, demonstrations=Given(demonstrations=broken)).lesson()
    with pytest.raises(ConfigError, match="needs the sensor 'stat', which the demonstrations do not have; did you mean 'state'"):
        job(tmp_path, encoder=StateEncoder(sensors=("stat",))).lesson()


@pytest.mark.parametrize(("scaling", "refused"), [("mean_std", True), ("quantiles", True), ("min_max", False)])
def test_a_clip_that_would_cut_demonstrated_actions_is_refused(scaling, refused, tmp_path):
    steps = np.linspace(-1, 1, 50)
    data = Demonstrations(episodes=(episode(steps[:, None], np.stack([steps, steps], 1)),), action=SPEC)
    made = job(tmp_path, demonstrations=Given(demonstrations=data), action_scaling=scaling)
    if refused:
        with pytest.raises(ConfigError, match=f"sampling.clip=1 would cut demonstrated actions, which reach 1.*action_scaling={scaling}"):
            made.lesson()
    else:
        assert made.lesson().material.stats.scale.tolist() == pytest.approx([1.0, 1.0])
