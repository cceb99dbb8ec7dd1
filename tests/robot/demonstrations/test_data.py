import numpy as np
import pytest

from robot.demonstrations import Demonstrations, Episode
from robot.types import ActionSpec

SPEC = ActionSpec(names=("x", "y"), control_rate_hz=10)


def episode(steps=3, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "observations": {"state": rng.normal(size=(steps, 4)), "picture": rng.integers(0, 255, (steps, 2, 2, 3), dtype=np.uint8)},
        "actions": rng.normal(size=(steps, 2)),
        "rewards": np.zeros(steps),
        "dones": np.arange(steps) == steps - 1,
        "success": True,
        "seed": seed,
    }
    return Episode(**values | changes)


def test_numbers_become_float32_and_pictures_stay_bytes():
    made = episode()
    assert made.observations["state"].dtype == made.actions.dtype == np.float32
    assert made.observations["picture"].dtype == np.uint8
    assert len(made) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((0, 2))}, "at least one step"),
        ({"actions": np.zeros(3)}, r"\(time, dof\)"),
        ({"observations": {}}, "at least one sensor"),
        ({"rewards": np.zeros(4)}, "of 3 actions .* rewards 4"),
        ({"observations": {"state": np.zeros((2, 4))}}, r"observations\['state'\] 2"),
        ({"states": np.zeros((5, 9))}, "states 5"),
        ({"actions": np.full((3, 2), np.nan)}, "actions of the episode with seed 0 are NaN"),
        ({"observations": {"state": np.full((3, 4), np.inf)}}, "state of the episode"),
        ({"last": {"state": np.zeros(4)}}, "last frame"),
    ],
)
def test_an_episode_that_cannot_be_learned_from_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        episode(**changes)


def test_demonstrations_count_episodes_steps_and_successes():
    made = Demonstrations(episodes=[episode(3), episode(5, 1), episode(2, 2, success=False)], action=SPEC)
    assert (len(made), made.steps, made.successes, made.sensors) == (3, 10, 2, ("picture", "state"))


def test_one_sensor_can_be_picked():
    made = Demonstrations(episodes=[episode()], action=SPEC).only(["state"])
    assert made.sensors == ("state",)
    with pytest.raises(ValueError, match="no observations of depth; sensors: state"):
        made.only(["depth"])


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "at least one episode"),
        ([episode(), episode(observations={"state": np.zeros((3, 4))})], "episode 1 shows"),
        ([episode(actions=np.zeros((3, 3)))], "episode 0 has actions of 3 dimensions, but the action has 2"),
    ],
)
def test_episodes_that_do_not_belong_together_are_refused(episodes, message):
    with pytest.raises(ValueError, match=message):
        Demonstrations(episodes=episodes, action=SPEC)


def test_the_fingerprint_changes_with_data_order_and_meaning_only():
    first, second = episode(3, 0), episode(3, 1)
    made = Demonstrations(episodes=[first, second], action=SPEC).sha256()
    assert len(made) == 64
    assert made == Demonstrations(episodes=[episode(3, 0, rewards=np.ones(3)), second], action=SPEC, env={"a": 1}).sha256()
    changed = first.actions.copy()
    changed[2, 1] += 1e-6
    faster = ActionSpec(names=("x", "y"), control_rate_hz=20)
    others = [
        Demonstrations(episodes=[second, first], action=SPEC),
        Demonstrations(episodes=[episode(3, 0, actions=changed), second], action=SPEC),
        Demonstrations(episodes=[first, second], action=faster),
        Demonstrations(episodes=[first], action=SPEC),
    ]
    assert len({made, *(other.sha256() for other in others)}) == 5
