"""SDESampler and WindowSampler: stochastic steps on one path."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from flowrl.flow import CPS, ODE, Condition, DanceSDE, FlowSDE
from flowrl.testing import GaussianField, check_sampler
from samplers import DPMSolverPP2M, Heun, SDESampler, ShiftedGrid, WindowSampler

GROUP = 3


def sde(**changes):
    fields = {"steps": 6} | changes
    grid = ShiftedGrid(steps=fields.pop("steps"), shift=3.0)
    return SDESampler(**{"grid": grid, "dynamics": FlowSDE(noise_level=0.7), "group_size": GROUP} | fields)


def window(**changes):
    fields = {"steps": 10, "size": 2} | changes
    grid = ShiftedGrid(steps=fields.pop("steps"), shift=3.0)
    return WindowSampler(**{"grid": grid, "dynamics": FlowSDE(noise_level=0.7), "group_size": GROUP} | fields)


def dance(**changes):
    fields = {"steps": 16, "dynamics": DanceSDE(noise_level=0.3), "shared_noise": True, "exclude_last": True, "train_fraction": 0.6}
    return sde(**fields | changes)


SAMPLERS = {
    "Flow-GRPO": sde(),
    "CPS": sde(dynamics=CPS(noise_level=0.8)),
    "DanceGRPO": dance(),
    "some steps": sde(sde_indices=(4, 2)),
    "MixGRPO": window(size=4).for_update(60, 0),
    "MixGRPO, own noise": window(size=4, shared_noise=False).for_update(60, 0),
    "MixGRPO, coarse tail": window(size=3, tail_stride=2).for_update(30, 0),
    "Flow-GRPO-Fast": window(size=1, order="random", shift_every=1, last_index=4).for_update(7, 0),
}


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS.keys())
def sampler(request):
    return request.param


def test_path_samplers_keep_the_contract_of_samplers(sampler, curved, prompts, noise):
    check_sampler(sampler, curved, noise(3 * sampler.noise_rows()), prompts(3))


def test_a_group_that_shares_its_noise_is_sampled_as_members_would_be_one_by_one(sampler, curved, prompts, noise, generators):
    """Second route: every member on its own from the first step on, with the noise of its own row."""
    rows, condition, times = 2 * GROUP, prompts(2).repeat(GROUP), sampler.grid.times().float().tolist()
    x = start = noise(2 * sampler.noise_rows())
    x = x.repeat_interleave(GROUP // sampler.noise_rows(), 0)
    sources, path, scores = generators(2), (*sampler.visited(), sampler.steps), {}
    for i, j in pairwise(path):
        t, s = torch.tensor(times[i]), torch.tensor(times[j])
        kernel = (sampler.dynamics if i in sampler.stochastic() else ODE()).transition(curved(x, t.expand(rows), condition), x, t, s)
        if i in sampler.stochastic():
            x = kernel.mean + kernel.std * torch.cat([torch.randn(GROUP, 2, 3, generator=g) for g in sources])
            scores[i] = kernel.log_prob(x)
        else:
            x = kernel.mean
    drawn = sampler.sample(curved, start, prompts(2), generators(2))
    torch.testing.assert_close(drawn.final, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn.log_prob, torch.stack([scores[i] for i in sampler.trained()], 1), atol=1e-5, rtol=1e-5)


def test_only_trained_transitions_are_kept_and_shared_parents_once(curved, prompts, noise):
    drawn = dance(trained_indices=(0, 3)).sample(curved, noise(2), prompts(2))
    assert drawn.children.shape == (6, 2, 2, 3)
    assert len(drawn.parents) == 2 + 6  # at step 0 one per prompt, later one per row
    assert drawn.parent_index[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert drawn.parent_index[:, 1].tolist() == [2, 3, 4, 5, 6, 7]
    assert drawn.parent_condition.tolist() == [0, 1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (sde(), 3 * 6),
        (sde(shared_noise=True), 1 + 3 * 5),
        (dance(), 1 + 3 * 15),
        (sde(shared_noise=True, sde_indices=(2, 4)), 3 + 3 * 3),
        (window(start=5), 6 + 3 * 4),
        (window(start=5, shared_noise=False), 3 * 10),
        (window(start=5, tail_stride=2), 6 + 3 * (1 + 2)),  # 6 of the window, then 7 and 8, from which to the end
    ],
)
def test_what_a_group_shares_is_evaluated_once(sampler, expected, curved, recorded, prompts, noise):
    spy = recorded(curved)
    drawn = sampler.sample(spy, noise(2 * sampler.noise_rows()), prompts(2))
    assert drawn.network_evaluations == sum(spy.sizes) == 2 * sampler.evaluations() == 2 * expected


def test_max_batch_bounds_the_calls_of_a_path_and_changes_nothing_else(curved, recorded, prompts, noise, generators):
    spy = recorded(curved)
    parts = sde(max_batch=4).sample(spy, noise(6), prompts(2), generators(2))
    whole = sde().sample(curved, noise(6), prompts(2), generators(2))
    assert max(spy.sizes) == 4
    torch.testing.assert_close(parts.final, whole.final, atol=2e-6, rtol=2e-6)


def test_dance_trains_nine_of_its_first_fifteen_steps_each_as_often_as_the_others():
    draws = [dance().for_update(update, seed=1).trained() for update in range(400)]
    assert {len(set(draw)) for draw in draws} == {9}
    counts = Counter(index for draw in draws for index in draw)
    assert sorted(counts) == list(range(15))
    deviation = math.sqrt(400 * 0.6 * 0.4)
    assert all(abs(count - 240) < 4 * deviation for count in counts.values())


def test_what_an_update_trains_follows_from_its_number_and_the_seed_alone():
    assert dance().for_update(5, 1).trained() == dance().for_update(2, 1).for_update(5, 1).trained()
    assert dance().for_update(5, 1).trained() != dance().for_update(6, 1).trained()
    assert dance().for_update(5, 1).trained() != dance().for_update(5, 2).trained()
    assert dance().for_update(5, 1).stochastic() == tuple(range(15))


def test_all_steps_are_stochastic_except_where_the_dynamics_or_the_user_say_otherwise():
    assert sde().stochastic() == (0, 1, 2, 3, 4, 5)
    assert sde(dynamics=CPS(noise_level=0.8)).stochastic() == (0, 1, 2, 3, 4)
    assert sde(exclude_last=True).stochastic() == (0, 1, 2, 3, 4)
    assert sde(sde_indices=(4, 2)).stochastic() == (2, 4)
    assert len(sde(train_fraction=0.99).trained()) == 5


def test_the_last_step_can_be_stochastic_and_not_trained():
    """Flow-GRPO's scripts train int(0.99 · 10) = 9 of 10 steps and draw all of them."""
    flow_grpo = sde(steps=10, train_last=False)
    assert flow_grpo.stochastic() == tuple(range(10))
    assert flow_grpo.trained() == flow_grpo.for_update(3, 1).trained() == tuple(range(9))


def test_a_progressive_window_moves_by_its_stride_and_starts_again():
    """Ten steps, a window of four by two: it may start at 0, 2, 4 and 6."""
    mix = window(size=4, stride=2, shift_every=25)
    starts = [mix.for_update(update, 0).stochastic()[0] for update in range(125)]
    assert starts == [0] * 25 + [2] * 25 + [4] * 25 + [6] * 25 + [0] * 25
    assert mix.for_update(30, 0).trained() == (2, 3, 4, 5)
    assert mix.for_update(30, 0).for_update(0, 0).trained() == (0, 1, 2, 3)


def test_a_window_stays_within_its_range_and_off_the_noise_free_step_of_cps():
    assert window(size=3, first_index=2, last_index=6).positions() == (2, 3, 4)
    assert window(size=3, dynamics=CPS(noise_level=0.8)).positions() == tuple(range(7))
    assert window(size=3).positions() == tuple(range(8))


def test_a_random_window_visits_all_positions_and_holds_still_between_moves():
    fast = window(size=2, order="random", shift_every=5, last_index=4)
    starts = [fast.for_update(update, 3).stochastic()[0] for update in range(1000)]
    assert all(len(set(starts[at : at + 5])) == 1 for at in range(0, 1000, 5))
    assert set(starts) == {0, 1, 2, 3}
    assert all(abs(count - 250) < 5 * 4 * math.sqrt(200 * 0.25 * 0.75) for count in Counter(starts).values())


def test_the_tail_solver_takes_the_steps_after_the_window_alone(curved, recorded, prompts, noise, generators):
    fields = {"start": 3, "size": 2, "shared_noise": False}
    euler = window(**fields).sample(curved, noise(6), prompts(2), generators(2))
    spy = recorded(curved)
    heun = window(**fields, tail_solver=Heun()).sample(spy, noise(6), prompts(2), generators(2))
    assert spy.sizes == [6] * (5 + 2 * 5 - 1)  # one a step before and in the window, two after it, one for the last
    torch.testing.assert_close(heun.children, euler.children)
    assert not torch.isclose(heun.final, euler.final).all()
    both = window(**fields, solver=Heun()).sample(curved, noise(6), prompts(2), generators(2))
    assert not torch.isclose(both.children, euler.children).all()


def test_a_multistep_solver_forgets_what_lies_before_a_stochastic_step(curved, prompts, noise, generators):
    """The tail from the last children is that of a rollout without a past: DPM++ from there by hand."""
    fields = {"start": 3, "size": 2, "shared_noise": False, "solver": DPMSolverPP2M()}
    drawn = window(**fields).sample(curved, noise(6), prompts(2), generators(2))
    x, memory, condition = drawn.children[:, 1], (), prompts(2).repeat(GROUP)
    times = window().grid.times().float()
    for i in range(5, 10):
        t, s = times[i].expand(6), times[i + 1].expand(6)
        x, memory = DPMSolverPP2M().step(curved(x, t, condition), x, t, s, memory, None)
    torch.testing.assert_close(drawn.final, x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "sampler",
    [
        sde(dynamics=FlowSDE(noise_level=0.7), group_size=5000, steps=200),
        sde(dynamics=DanceSDE(noise_level=0.3), group_size=5000, steps=200),
        sde(dynamics=CPS(noise_level=0.1), group_size=5000, steps=200),  # CPS replaces its share of noise however small the step
        window(group_size=5000, steps=200, size=20, start=60, shared_noise=False),
    ],
    ids=["flow", "dance", "cps", "window"],
)
def test_stochastic_sampling_of_an_exact_field_ends_at_the_data(sampler):
    """20000 paths of the field of N(2, 0.5²); four standard errors are 0.014 (mean) and 0.01 (std), the rest is the step's bias."""
    drawn = sampler.sample(GaussianField(mean=2.0, std=0.5), torch.randn(20_000, 1), Condition(rows=4))
    assert drawn.final.mean().item() == pytest.approx(2.0, abs=0.02)
    assert drawn.final.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sde(group_size=1), "group_size must be at least 2, got 1"),
        (lambda: sde(max_batch=-3), "max_batch must be at least 1, got -3"),
        (lambda: sde(dynamics=ODE()), "use samplers.ODESampler"),
        (lambda: sde(sde_indices=()), "use samplers.ODESampler"),
        (lambda: sde(sde_indices=(1, 6)), r"must lie in 0 … 5 \(the grid has 6 steps\), got \[6\]"),
        (lambda: sde(sde_indices=(1, 1)), r"must differ, got \(1, 1\)"),
        (lambda: sde(sde_indices=(5,), dynamics=CPS(noise_level=0.5)), r"steps \[5\] are noise-free under CPS"),
        (lambda: sde(sde_indices=(5,), exclude_last=True), "at least one step must be stochastic"),
        (lambda: sde(train_fraction=0.0), r"train_fraction must lie in \(0, 1\], got 0"),
        (lambda: sde(train_fraction=1.5), "got 1.5"),
        (lambda: sde(sde_indices=(5,), train_last=False), "train_last=False leaves no step to train"),
        (lambda: sde(train_fraction=float("nan")), "got nan"),
        (lambda: sde(trained_indices=()), "trained_indices must name at least one step"),
        (lambda: sde(sde_indices=(1, 2), trained_indices=(3,)), r"trained_indices \[3\] are not stochastic"),
        (lambda: window(size=0), "size must be at least 1, got 0"),
        (lambda: window(stride=0), "stride must be at least 1, got 0"),
        (lambda: window(shift_every=0), "shift_every must be at least 1, got 0"),
        (lambda: window(tail_stride=0), "tail_stride must be at least 1, got 0"),
        (lambda: window(order="progresive"), "did you mean 'progressive'"),
        (lambda: window(size=11), "a window of 11 steps does not fit steps 0 … 9"),
        (lambda: window(last_index=10), r"must lie in 0 … 9 \(the grid has 10 steps\), got \[10\]"),
        (lambda: window(first_index=-2), r"got \[-2, -1\]"),
        (lambda: window(start=9), "a window of 2 steps from start = 9 leaves steps 0 … 9"),
        (lambda: window(dynamics=ODE()), "use samplers.ODESampler"),
    ],
)
def test_a_path_sampler_that_cannot_work_is_refused_where_it_is_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("sampler", "rows"), [(sde(), 6), (sde(shared_noise=True), 2)])
def test_initial_noise_for_another_number_of_rows_is_refused(sampler, rows, curved, prompts, noise):
    with pytest.raises(ValueError, match=f"{rows} for 2 prompt"):
        sampler.sample(curved, noise(4), prompts(2))
