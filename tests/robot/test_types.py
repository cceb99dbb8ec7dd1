import pytest
import torch

from robot import ActionChunk, ActionSpec, NormStats, Observation

SPEC = ActionSpec(names=("x", "y"), control_rate_hz=20.0)


def test_a_control_period_is_one_over_the_rate():
    assert SPEC.control_period_s == 0.05
    assert SPEC.dof == 2


@pytest.mark.parametrize(
    ("names", "rate", "message"),
    [((), 10.0, "names of their own"), (("x", "x"), 10.0, "names of their own"), (("x",), 0.0, "must be > 0, got 0.0")],
)
def test_an_action_needs_different_names_and_a_rate(names, rate, message):
    with pytest.raises(ValueError, match=message):
        ActionSpec(names=names, control_rate_hz=rate)


def observation():
    return Observation({"state": torch.arange(12.0).reshape(2, 3, 2), "camera": torch.zeros(2, 3, 3, 4, 4)})


def test_an_observation_gives_some_sensors_and_their_latest_frames():
    found = observation().only(["state"], history=2)
    assert list(found.values) == ["state"]
    torch.testing.assert_close(found.values["state"][0], torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    assert len(observation()[[1]]) == 1
    torch.testing.assert_close(observation()[[1]].values["state"][0, 0], torch.tensor([6.0, 7.0]))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: observation().only(["depth"]), "has no depth; it has camera, state"),
        (lambda: observation().only(["state"], history=4), "needs 4 frames, the observation holds 3"),
        (lambda: Observation({}), "share their first two axes"),
        (lambda: Observation({"a": torch.zeros(2, 3, 1), "b": torch.zeros(2, 2, 1)}), "share their first two axes"),
    ],
)
def test_an_observation_says_what_it_lacks(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_chunk_is_executed_from_the_present_step_on():
    chunk = ActionChunk(values=torch.arange(10.0).reshape(1, 5, 2), spec=SPEC, first=1)
    torch.testing.assert_close(chunk.to_execute(2)[0], torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    with pytest.raises(ValueError, match="has 4 actions left, not 5"):
        chunk.to_execute(5)
    with pytest.raises(ValueError, match=r"must be \(batch, horizon, 2\)"):
        ActionChunk(values=torch.zeros(1, 5, 3), spec=SPEC)


DATA = torch.tensor([[0.0, 5.0, -1.0], [10.0, 5.0, 1.0], [5.0, 5.0, 0.0]])


def test_min_max_takes_the_range_to_minus_one_and_one_and_leaves_what_never_moves():
    stats = NormStats.min_max(DATA)
    torch.testing.assert_close(stats.offset, torch.tensor([5.0, 5.0, 0.0]))
    torch.testing.assert_close(stats.scale, torch.tensor([5.0, 1.0, 1.0]))
    torch.testing.assert_close(stats.normalise(DATA)[:, 0], torch.tensor([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(stats.unnormalise(stats.normalise(DATA)), DATA)


def test_mean_and_std_and_quantiles_normalise_as_they_say():
    torch.testing.assert_close(NormStats.mean_std(DATA).scale, torch.tensor([5.0, 1.0, 1.0]))
    values = torch.linspace(0, 100, 101)[:, None]
    stats = NormStats.quantiles(values)
    torch.testing.assert_close(torch.cat([stats.offset, stats.scale]), torch.tensor([50.0, 49.0]))
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        NormStats.quantiles(values, 0.9, 0.1)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_divided_by_is_refused(scale):
    with pytest.raises(ValueError, match="scales > 0"):
        NormStats(torch.zeros(1), torch.tensor([scale]))


def test_offset_and_scale_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"must be numbers or \(dof,\)"):
        NormStats(torch.zeros(2), torch.ones(3))
