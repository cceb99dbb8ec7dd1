import numpy as np
import pytest
import torch
from torch.distributions import Normal

from flowrl.flow import Condition
from flowrl.rl import PolicyGradient, group_advantage
from flowrl.shapes import randn, seeded_generator
from flowrl.testing import check_field
from robot.execution import ChunkExecutor
from robot.gating.toy import TOY_SENSOR, TwoModes, distance_to_modes
from robot.gating.toy_task import TwoModesTask
from robot.noise_gate import ConstantGate, NoiseGate
from robot.types import Observation
from samplers import ODESampler, PerTokenSchedule, ShiftedGrid

WIDE = TwoModes(frames=3, telling=1, tokens=2, channels=2, std=0.25)


def seen(rows):
    return Observation({TOY_SENSOR: torch.zeros(rows, 1, 1)})


def actions(schedule, rows=4096, toy=None, seed=7):
    return (toy or TwoModes()).load().with_schedule(schedule).act(seen(rows), seeded_generator(seed)).values


def success(drawn):
    return (distance_to_modes(drawn).sqrt() < 0.2).float().mean().item()


def log_density(x, times, toy):
    """Of a packed state, by Bayes' rule over the two modes."""
    t = times[..., None]
    of_modes = []
    for mode in (-1.0, 1.0):
        mean, std = torch.zeros_like(x), torch.ones_like(x)
        mean[:, [toy.telling, -1]], std[:, [toy.telling, -1]] = mode, toy.std
        each = Normal((1 - t) * mean, ((1 - t) ** 2 * std**2 + t**2).sqrt()).log_prob(x)
        each = torch.cat([each[:, :-1].flatten(1), each[:, -1, :1]], dim=1)  # the rest of the actions' row is padding
        of_modes.append(each.sum(1))
    return torch.stack(of_modes).logsumexp(0)


def test_the_velocity_is_that_of_the_score_of_the_mixture_at_a_time_per_row():
    x = WIDE.layout.noise(64, seeded_generator(1)).double().requires_grad_()
    times = 0.05 + 0.9 * torch.rand(64, 4, generator=seeded_generator(2), dtype=torch.float64)
    (score,) = torch.autograd.grad(log_density(x, times, WIDE).sum(), x)
    t = times[..., None]
    data = (x + t**2 * score) / (1 - t)  # Tweedie's formula
    expected = torch.where(WIDE.network().filled > 0, (x - data) / t, 0).detach()
    torch.testing.assert_close(WIDE.network().double()(x.detach(), times), expected)


def test_the_velocity_keeps_the_contract_of_a_field():
    check_field(WIDE.network(), WIDE.layout.noise(8, seeded_generator(1)), Condition(rows=8))


def test_equal_times_agree_whatever_their_shape():
    field, x = WIDE.network(), WIDE.layout.noise(8, seeded_generator(1))
    expected = field(x, 0.4)
    for time in (torch.full((8,), 0.4), torch.full((8, 4), 0.4)):
        assert torch.equal(field(x, time), expected)


def test_a_latent_at_time_one_tells_the_actions_as_much_as_a_hidden_one():
    field, x = WIDE.network(), WIDE.layout.noise(8, seeded_generator(1))
    times = torch.full((8, 4), 0.4)
    hidden = torch.zeros(8, 3, dtype=torch.bool).index_fill(1, torch.tensor([WIDE.telling]), value=True)
    cut = field(x, times, hidden=hidden)[:, -1]
    assert not torch.equal(cut, field(x, times)[:, -1])
    masked = times.index_fill(1, torch.tensor([WIDE.telling]), 1.0)
    assert torch.equal(field(x, masked)[:, -1], cut)


def test_fine_grids_give_both_modes_with_their_spread():
    drawn = actions(PerTokenSchedule.shared(100, 3))
    assert drawn.sign().mean().abs() < 0.05
    assert distance_to_modes(drawn).mean().item() == pytest.approx(0.1**2, rel=0.15)


def test_the_shared_schedule_is_the_standard_sampler_on_this_field():
    start = TwoModes().load().begin(seen(16), seeded_generator(7))
    final = ODESampler(grid=ShiftedGrid(steps=3)).sample(start.field, start.x, start.condition).samples[:, 0, 0]
    assert torch.equal(TwoModes().layout.actions(final), actions(PerTokenSchedule.shared(3, 3), 16))


def test_on_a_coarse_grid_success_grows_with_the_lead_of_the_telling_latent_alone():
    def rate(*multipliers):
        return success(actions(PerTokenSchedule.constant(multipliers, 3)))

    assert rate(1, 0, 1) < 0.78 < rate(1, 1, 1) < 0.9
    assert rate(1, 2, 1) > 0.98
    assert rate(0, 1, 2) == rate(1, 1, 1)


def learn(gate, lr, updates, states=16, group=16):
    """Plain policy gradient: groups share the noise that they begin with."""
    toy = TwoModes()
    model, generator = toy.load(), seeded_generator(3)
    optimizer, rows = torch.optim.AdamW(gate.parameters(), lr=lr), states * group
    for _ in range(updates):
        state = model.begin(seen(rows), generator)
        state.x = toy.layout.noise(states, generator).repeat_interleave(group, 0)
        record = gate.explore(state, lambda _: randn((rows, gate.columns), generator, device="cpu"))
        advantage = group_advantage(-distance_to_modes(state.actions), torch.arange(states).repeat_interleave(group))
        log_ratio = gate.log_prob(record) - record.log_prob
        loss, _ = PolicyGradient()(log_ratio.flatten(1), advantage, record.counts.flatten(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate


def mean_times(gate, rows=512):
    """Of the latents under the mean decision, ``(step + 1, frame)``."""
    start = TwoModes().load().begin(seen(rows), seeded_generator(9))
    return gate.explore(start, lambda _: torch.zeros(rows, gate.columns)).times.mean(1)


@pytest.mark.parametrize("kind", ["network", "constants"])
def test_policy_gradient_puts_the_telling_latent_ahead_and_beats_the_shared_schedule(kind):
    torch.manual_seed(0)
    if kind == "network":
        gate = learn(NoiseGate(3, 1, 1, steps=3, width=32), lr=1e-3, updates=30)
    else:
        gate = learn(ConstantGate(3, steps=3), lr=5e-2, updates=40)
    times = mean_times(gate)[1:3]  # those at which the actions listen
    others = times[:, [0, 2]].amin(1)
    assert (times[:, 1] < others).all()
    assert times[0, 1] < others[0] - 0.1
    shared, learned = (success(actions(schedule, seed=1234)) for schedule in (PerTokenSchedule.shared(3, 3), gate))
    assert shared < 0.89
    assert learned > 0.97


def test_the_task_accepts_both_places_and_nothing_between():
    pytest.importorskip("gymnasium")
    env = TwoModesTask().make()
    outcomes = {}
    for place in (-1.0, 1.15, 0.7, 0.0):
        env.reset(seed=1)
        _, reward, terminated, _, info = env.step(np.array([place], np.float32))
        assert terminated
        outcomes[place] = info["success"]
        assert reward == pytest.approx(-((abs(place) - 1) ** 2), abs=1e-6)
    assert outcomes == {-1.0: True, 1.15: True, 0.7: False, 0.0: False}


def test_the_model_acts_in_its_task():
    pytest.importorskip("gymnasium")
    task, executor = TwoModesTask(), ChunkExecutor(TwoModes(steps=50).load())
    for row in range(4):
        executor.start(row, seed=row)
    env = task.make()
    frame, _ = env.reset(seed=0)
    chosen = executor.actions(dict.fromkeys(range(4), frame))
    for row in range(4):
        env.reset(seed=0)
        assert env.step(chosen[row])[-1]["success"]


@pytest.mark.parametrize("settings", [{"telling": 3}, {"telling": -1}, {"std": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="need 0 <= telling < frames and std > 0"):
        TwoModes(**settings)
