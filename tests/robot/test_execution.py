"""A policy of chunks as a policy of steps."""

import numpy as np
import pytest
import torch

from robot import ActionChunk, ActionSpec, ChunkExecutor, Composition, MemberConfig
from robot.envs.toy_policy import ToyPolicy
from robot.execution import EpisodeKey

SPEC = ActionSpec(names=("x",), control_rate_hz=20.0)


class Echo:
    """Acts with the sum of the frames it sees, plus the number of the step in the chunk; noise where asked."""

    action, sensors, history, execute, name = SPEC, ("state",), 2, 3, "echo"

    def __init__(self, noisy=False):
        self.noisy, self.seen, self.weights = noisy, [], []

    def act(self, observation, generator=None, weights=None):
        self.seen.append(observation.values["state"].clone())
        self.weights.append(weights)
        values = observation.values["state"].sum((1, 2))[:, None, None] + torch.arange(5.0)[None, :, None]
        if self.noisy:
            values = values + torch.stack([torch.randn(5, 1, generator=g) for g in generator])
        return ActionChunk(values=values, spec=SPEC, first=1, latency_s={"echo": 0.5})


def frame(value):
    return {"state": np.array([value], dtype=np.float32)}


def test_actions_of_a_chunk_are_executed_before_the_policy_is_asked_again():
    policy = Echo()
    executor = ChunkExecutor(policy)
    executor.start(0, seed=1)
    actions = [float(executor.actions({0: frame(value)})[0][0]) for value in (1.0, 2.0, 3.0, 4.0)]
    assert actions == [3.0, 4.0, 5.0, 8.0]  # (1 + 1) + 1, 2, 3 from the first chunk; then frames 3 and 4: 7 + 1
    assert [seen[0, :, 0].tolist() for seen in policy.seen] == [[1.0, 1.0], [3.0, 4.0]]
    assert executor.summary(0)["chunks"] == 2


def test_rows_that_run_out_together_share_one_call():
    policy = Echo()
    executor = ChunkExecutor(policy)
    for row in (3, 7):
        executor.start(row, seed=row)
    executor.actions({3: frame(1.0), 7: frame(2.0)})
    assert len(policy.seen) == 1
    assert len(policy.seen[0]) == 2
    assert executor.summary(7)["latency_s"] == {"echo": 0.25}


def test_noise_depends_on_the_episode_and_the_chunk_alone():
    def first_actions(rows):
        executor = ChunkExecutor(Echo(noisy=True), seed=5)
        for row, seed in rows.items():
            executor.start(row, seed=seed)
        found = executor.actions({row: frame(0.0) for row in rows})
        return {seed: float(found[row][0]) for row, seed in rows.items()}

    together = first_actions({0: 11, 1: 12})
    assert together[12] != together[11]
    assert first_actions({4: 12})[12] == together[12]


def test_an_episode_that_starts_again_forgets_its_past():
    policy = Echo()
    executor = ChunkExecutor(policy)
    executor.start(0, seed=1)
    executor.actions({0: frame(9.0)})
    executor.start(0, seed=2)
    assert float(executor.actions({0: frame(1.0)})[0][0]) == 3.0
    assert executor.summary(0)["chunks"] == 1


def test_rows_with_weights_of_their_own_are_asked_with_them():
    policy = Echo()
    executor = ChunkExecutor(policy)
    executor.start(0, seed=1, weights=(0.3, 0.7))
    executor.start(1, seed=1)
    executor.actions({0: frame(0.0), 1: frame(0.0)})
    assert [w is None for w in policy.weights] == [False, True]
    torch.testing.assert_close(policy.weights[0], torch.tensor([[0.3, 0.7]]))


def test_an_episode_does_not_depend_on_which_members_its_neighbours_use():
    """A flow alone takes finer noise levels than beside a diffusion policy."""
    members = [
        MemberConfig(policy=ToyPolicy(bias=0.1), weight=0.5),
        MemberConfig(policy=ToyPolicy(bias=-0.3, family="diffusion"), weight=0.5),
    ]
    policy = Composition(members=tuple(members)).load()
    table = {0: (1.0, 0.0), 1: (0.5, 0.5), 2: (0.0, 1.0)}

    def act(rows):
        executor = ChunkExecutor(policy)
        for row in rows:
            executor.start(row, seed=row, weights=table[row])
        return executor.actions({row: {"target": np.zeros(1, np.float32)} for row in rows})

    together = act(table)
    for row in table:
        np.testing.assert_allclose(together[row], act([row])[row], atol=1e-6)


def test_pictures_become_channels_first_in_zero_to_one():
    class Camera(Echo):
        sensors, history = ("camera",), 1

        def act(self, observation, generator=None):
            self.picture = observation.values["camera"]
            return ActionChunk(values=torch.zeros(1, 5, 1), spec=SPEC)

    policy = Camera()
    executor = ChunkExecutor(policy)
    executor.start(0, seed=0)
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[0, 1, 2] = 255
    executor.actions({0: {"camera": picture}})
    assert policy.picture.shape == (1, 1, 3, 4, 6)
    assert policy.picture[0, 0, 2, 0, 1] == 1.0


def test_a_sensor_that_the_environment_lacks_is_named():
    executor = ChunkExecutor(Echo())
    executor.start(0, seed=0)
    with pytest.raises(ValueError, match="shows no state, which the policy needs; it shows depth"):
        executor.actions({0: {"depth": np.zeros(1)}})


class Explorer(Echo):
    """Notes which episodes it is told of, and adds a hundred times the variation to its actions."""

    def __init__(self, noisy=False):
        super().__init__(noisy)
        self.told = []

    def act(self, observation, generator=None, episodes=None):
        self.told.append(episodes)
        chunk = super().act(observation, generator)
        shift = torch.tensor([0.0] * len(observation) if episodes is None else [100.0 * key.variation for key in episodes])
        return ActionChunk(values=chunk.values + shift[:, None, None], spec=SPEC, first=1)


def test_rows_with_a_variation_are_told_which_chunk_of_which_episode_they_are():
    policy = Explorer()
    executor = ChunkExecutor(policy)
    executor.start(0, seed=11, variation=3)
    executor.start(1, seed=11)
    for value in (1.0, 2.0, 3.0, 4.0):  # three actions of a chunk are executed
        executor.actions({0: frame(value), 1: frame(value)})
    assert policy.told == [[EpisodeKey(11, 3, 0)], None, [EpisodeKey(11, 3, 1)], None]


def test_variations_of_an_episode_share_its_noise():
    executor = ChunkExecutor(Explorer(noisy=True), seed=5)
    for row, variation in enumerate((0, 1, None)):
        executor.start(row, seed=11, variation=variation)
    executor.start(3, seed=12, variation=0)
    first, second, plain, other = (float(action[0]) for action in executor.actions({row: frame(0.0) for row in range(4)}).values())
    assert second == pytest.approx(first + 100, abs=1e-5)
    assert plain == first != other
