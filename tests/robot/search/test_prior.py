"""The prior from demonstrations, against its closed form on the toy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from flowrl.errors import ConfigError
from robot.composition.grid import composition_times
from robot.composition.loop import Loop
from robot.demonstrations.data import Demonstrations, Episode
from robot.envs.toy import Toy
from robot.envs.toy_policy import ToyPolicy
from robot.gpc import Composition, MemberConfig
from robot.search.prior import DenoisingPrior
from robot.search.simplex import lattice
from robot.types import ActionSpec, Observation

STD = 0.1


@dataclass(frozen=True)
class Aimed:
    """The expert's episodes on the toy: it takes the target itself."""

    episodes: int = 400
    names: tuple[str, ...] = ("position",)

    def load(self):
        targets = np.random.default_rng(3).uniform(-1, 1, (self.episodes, 1, 1)).astype(np.float32)
        ends = {"rewards": np.zeros(1, np.float32), "dones": np.ones(1, np.bool_), "success": True}
        episodes = tuple(Episode(observations={"target": target}, actions=target, **ends) for target in targets)
        return Demonstrations(episodes=episodes, action=ActionSpec(names=self.names, control_rate_hz=10))


def pair(biases, **second):
    first = ToyPolicy(bias=biases[0], name="first")
    other = replace(ToyPolicy(bias=biases[1], name="second"), **second)
    return Composition(members=(MemberConfig(policy=first, weight=0.3), MemberConfig(policy=other, weight=0.7))).load()


@pytest.mark.parametrize(("biases", "weight"), [((0.25, -0.25), 0.5), ((0.05, -1.0), 1 / 1.05), ((0.1, -0.3), 0.75), ((0.1, 0.3), 1.0)])
@pytest.mark.parametrize("second", [{}, {"family": "diffusion"}, {"family": "diffusion", "offset": 0.2, "scale": 1.3}])
def test_the_prior_cancels_the_biases_where_weights_can(biases, weight, second):
    """All errors share the part that no policy can avoid; what is left is w·b1 + (1 − w)·b2."""
    result = DenoisingPrior(demonstrations=Aimed()).run(pair(biases, **second))
    assert result.weights[0] == pytest.approx(weight, abs=0.02)
    assert result.error <= min(result.gram[0][0], result.gram[1][1]) + 1e-9


def test_the_gram_matrix_is_the_closed_form():
    """With data a* and an ideal net for N(a* + b, s²): ε̂ − ε = −(r·b + s²·ε)/(s² + r²)."""
    biases = (0.25, -0.25)
    policy = pair(biases)
    result = DenoisingPrior(demonstrations=Aimed(2000), chunks=2000, levels=8).run(policy)
    loop = Loop(policy.composer, (1, 1, 1), Observation({"target": torch.zeros(1, 1, 1)}))
    times = composition_times(loop.seats, 8)[:-1]
    ratios = np.array([t / (1 - t) for t in times if t < 1])
    expected = np.zeros((2, 2))
    for i, first in enumerate(biases):
        for j, second in enumerate(biases):
            expected[i, j] = ((ratios**2 * first * second + STD**4) / (STD**2 + ratios**2) ** 2).sum() / len(times)
    assert np.array(result.gram) == pytest.approx(expected, rel=0.05)


def test_a_member_asked_in_other_units_or_as_diffusion_has_the_same_errors():
    plain = DenoisingPrior(demonstrations=Aimed(), levels=8).run(pair((0.25, -0.25), offset=0.3, scale=0.5))
    other = DenoisingPrior(demonstrations=Aimed(), levels=8).run(pair((0.25, -0.25)))
    ratio = np.array(plain.gram) / np.array(other.gram)
    assert ratio[0, 0] == pytest.approx(ratio[1, 1], rel=0.1)  # one common unit for both members


def test_members_are_asked_where_their_networks_live(monkeypatch):
    """The device "meta" stands for a GPU; it holds no numbers, so the errors are not computed."""
    seen = []

    def devices(policy, parts, **settings):
        seen.extend(tensor.device.type for observation, chunks in parts for tensor in (*observation.values.values(), chunks))
        return np.eye(2)

    monkeypatch.setattr("robot.search.prior.noise_error_gram", devices)
    policy = pair((0.1, -0.3))
    object.__setattr__(policy.policies[0], "device", torch.device("meta"))
    DenoisingPrior(demonstrations=Aimed(4)).run(policy)
    assert set(seen) == {"meta"}


def test_candidates_outside_the_radius_are_left_out():
    prior = DenoisingPrior(demonstrations=Aimed(), radius=0.2)
    assert [weights[0] for weights in prior.near(lattice(2), (0.73, 0.27))] == [0.6, 0.7, 0.8, 0.9]
    assert prior.near([(0.0, 1.0), (0.5, 0.5)], (1.0, 0.0)) == [(0.5, 0.5)]
    assert replace(prior, radius=None).near(lattice(2), (0.73, 0.27)) == lattice(2)


def test_demonstrations_of_another_action_are_refused():
    with pytest.raises(ConfigError, match=r"actions \['speed'\], the policies \['position'\]"):
        DenoisingPrior(demonstrations=Aimed(names=("speed",))).run(pair((0.1, 0.2)))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="levels=0"):
        DenoisingPrior(demonstrations=Aimed(), levels=0)


def test_the_toys_episodes_are_of_the_toys_action():
    assert Aimed().load().action.names == Toy().action.names
