"""Policies of one network and composed ones, on networks whose law is known."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flowrl.flow import RectifiedFlow
from robot import ActionSpec, Composition, FlowPolicy, GPCPolicy, MemberConfig, NormStats, Observation, Sampling

SPEC = ActionSpec(names=("x", "y"), control_rate_hz=20.0)


class LastState(nn.Module):
    """Features: the newest frame of one sensor."""

    def __init__(self, sensor="state", history=1):
        super().__init__()
        self.sensors, self.history, self.calls = (sensor,), history, 0

    def forward(self, observation):
        assert observation.history == self.history
        self.calls += 1
        return observation.values[self.sensors[0]][:, -1]


class Certain(nn.Module):
    """Predicts the data itself: the features, plus the step's number in the chunk."""

    def forward(self, x, time, features):
        steps = torch.arange(x.shape[1], dtype=x.dtype)[None, :, None]
        return features[:, None, :1] + steps + torch.zeros_like(x)


@dataclass(frozen=True)
class Data:
    """A process that predicts data on a straight path."""

    path = RectifiedFlow()
    kind = "sample"

    def predictor(self, network):
        return network


def policy(name="one", sensor="state", history=1, horizon=8, first=0, execute=4, spec=SPEC, stats=None):
    return FlowPolicy(
        encoder=LastState(sensor, history),
        network=Certain(),
        process=Data(),
        stats=NormStats(torch.zeros(spec.dof), torch.ones(spec.dof)) if stats is None else stats,
        action=spec,
        horizon=horizon,
        execute=execute,
        first=first,
        sampling=Sampling(steps=3, clip=None),
        name=name,
    )


def see(value=10.0, history=2, rows=2):
    state = torch.full((rows, history, 1), value)
    return Observation({"state": state, "other": state + 100})


def test_a_policy_draws_a_chunk_in_physical_units_from_its_own_sensors():
    chunk = policy(stats=NormStats(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))).act(see())
    assert chunk.values.shape == (2, 8, 2)
    torch.testing.assert_close(chunk.values[0, :2], torch.tensor([[21.0, 32.0], [23.0, 35.0]]))  # offset + scale·(10 + step)
    assert chunk.spec == SPEC
    assert set(chunk.latency_s) == {"one"}


def test_members_are_aligned_at_the_present_step_and_each_sees_its_own_sensors():
    """The first chunk begins one step in the past: there its value is one more at the same moment."""
    past, present = policy("past", history=2, first=1, horizon=8), policy("present", sensor="other", horizon=4)
    gpc = GPCPolicy(policies=(past, present), weights=(0.5, 0.5))
    assert (gpc.sensors, gpc.history, gpc.first, gpc.horizon, gpc.execute) == (("state", "other"), 2, 1, 8, 4)
    chunk = gpc.act(see())
    now = chunk.to_execute(4)[0, :, 0]
    torch.testing.assert_close(now, torch.tensor([(11 + k + 110 + k) / 2 for k in range(4)]))
    torch.testing.assert_close(chunk.values[0, 5:, 0], torch.tensor([15.0, 16.0, 17.0]))  # beyond the shorter chunk: the longer alone
    assert chunk.disagreement.shape == (2,)
    assert set(chunk.latency_s) == {"past", "present"}


def test_actions_are_matched_by_name_and_a_member_may_lack_some():
    swapped = ActionSpec(names=("y", "x"), control_rate_hz=20.0)
    stats = NormStats(torch.tensor([0.0, 50.0]), torch.ones(2))
    chunk = GPCPolicy(policies=(policy(), policy(spec=swapped, stats=stats)), weights=(0.5, 0.5)).act(see())
    torch.testing.assert_close(chunk.values[0, 0], torch.tensor([35.0, 10.0]))  # x: (10 + 60)/2, y: (10 + 10)/2
    only_x = policy(spec=ActionSpec(names=("x",), control_rate_hz=20.0), stats=NormStats(torch.tensor([50.0]), torch.ones(1)))
    chunk = GPCPolicy(policies=(policy(), only_x), weights=(0.5, 0.5)).act(see())
    torch.testing.assert_close(chunk.values[0, 0], torch.tensor([35.0, 10.0]))


def test_weights_of_rows_override_those_of_the_policy():
    gpc = GPCPolicy(policies=(policy(), policy(sensor="other")), weights=(0.5, 0.5))
    chunk = gpc.act(see(), weights=torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    torch.testing.assert_close(chunk.values[:, 0, 0], torch.tensor([10.0, 85.0]))


def test_a_member_of_weight_zero_does_not_encode_its_observation():
    idle = policy(sensor="other")
    GPCPolicy(policies=(policy(), idle), weights=(1.0, 0.0)).act(see())
    assert idle.encoder.calls == 0


@dataclass(frozen=True)
class Source:
    policy: object

    def load(self, device="cpu"):
        return self.policy


def test_a_composition_loads_names_and_weighs_its_members():
    members = (MemberConfig(policy=Source(policy()), weight=0.25, name="a"), MemberConfig(policy=Source(policy("b")), weight=0.75, every=2))
    gpc = Composition(members=members, sampling=Sampling(steps=4, clip=None), execute=2).load()
    assert gpc.member_names == ("a", "b")
    assert gpc.name == "0.25 a + 0.75 b"
    assert gpc.execute == 2
    gpc.act(see())
    assert gpc.policies[1].encoder.calls == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: policy(execute=9), "execute <= horizon"),
        (lambda: policy(first=8), "first < horizon"),
        (lambda: GPCPolicy(policies=(policy(), policy()), weights=(1.0,)), "2 policies, 1 weights"),
        (lambda: GPCPolicy(policies=(policy(), policy()), weights=(0.7, 0.7)), "must sum to one"),
        (lambda: GPCPolicy(policies=(policy(),), weights=(1.0,), execute_steps=9), "execute_steps must lie in 1 … 8"),
        (
            lambda: GPCPolicy(
                policies=(policy(), policy("odd", spec=ActionSpec(names=("x", "z"), control_rate_hz=20.0))), weights=(0.5, 0.5)
            ),
            r"odd has the action dimensions \['z'\]",
        ),
        (
            lambda: GPCPolicy(policies=(policy(), policy(spec=ActionSpec(names=("x", "y"), control_rate_hz=5.0))), weights=(0.5, 0.5)),
            "20.0 Hz and one at 5.0 Hz",
        ),
        (lambda: Composition(members=(MemberConfig(policy=Source(object()), weight=1.0),)).load(), "has no Gaussian path"),
        (lambda: Sampling(steps=0), "steps >= 1"),
        (lambda: Sampling(sampler="sd"), "did you mean 'sde'"),
    ],
)
def test_policies_that_cannot_act_are_refused_with_the_reason(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_composition_without_settings_of_its_own_takes_what_suits_all():
    from dataclasses import replace

    clipped = replace(policy(), sampling=Sampling(steps=4, clip=1.0, sampler="sde"))
    wide = replace(policy("b"), sampling=Sampling(steps=7, clip=2.0))
    free = replace(policy("c"), sampling=Sampling(steps=2, clip=None))
    assert GPCPolicy(policies=(clipped, wide), weights=(0.5, 0.5)).sampling == Sampling(steps=7, clip=2.0)
    assert GPCPolicy(policies=(wide, free), weights=(0.5, 0.5)).sampling == Sampling(steps=7, clip=None)
    assert GPCPolicy(policies=(clipped,), weights=(1.0,)).sampling == clipped.sampling


@pytest.mark.parametrize(("weights", "value"), [((1.0, 0.0), 10.0), ((0.0, 1.0), 10.0), ((0.5, 0.5), 10.0)])
def test_chunks_of_other_lengths_can_be_searched_over_to_the_corners(weights, value):
    """The shorter policy alone covers less than the composition's chunk; what is executed lies inside both."""
    short, long = policy("short", horizon=8, execute=4), policy("long", horizon=16, execute=8, history=2, first=1)
    fixed = GPCPolicy(policies=(short, long), weights=weights)
    rows = GPCPolicy(policies=(short, long), weights=(0.5, 0.5))
    for chunk in (fixed.act(see()), rows.act(see(), weights=torch.tensor([weights, weights]))):
        offset = 0 if weights == (1.0, 0.0) else 0.5 if weights == (0.5, 0.5) else 1.0
        torch.testing.assert_close(chunk.to_execute(4)[0, :, 0], torch.tensor([value + offset + k for k in range(4)]))


def test_weight_on_those_alone_who_lack_a_dimension_is_refused():
    only_x = policy("narrow", spec=ActionSpec(names=("x",), control_rate_hz=20.0))
    with pytest.raises(ValueError, match="nobody with weight acts on y"):
        GPCPolicy(policies=(policy(), only_x), weights=(0.0, 1.0)).act(see())
