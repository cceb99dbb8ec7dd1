import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from flowrl.flow import CPS, DanceSDE, FlowSDE
from flowrl.testing import GaussianField, check_sampler
from samplers import DPMSolverPP2M, Heun, ShiftedGrid, SingularStochasticSampler

ETA, GROUP = 0.7, 3


def sampler(**changes):
    fields = {"steps": 9, "sde_indices": (0, 1, 3, 7, 8), "strides": (1, 2, 3)} | changes
    grid = ShiftedGrid(steps=fields.pop("steps"), shift=3.0)
    return SingularStochasticSampler(**{"grid": grid, "dynamics": FlowSDE(noise_level=ETA), "group_size": GROUP} | fields)


def step_noise(indices, generators, state):
    """The noise of every step: (prompt, step, member, *state), drawn prompt by prompt in the order in which the anchor meets the steps."""
    draws = [{k: torch.randn(GROUP, *state, generator=g) for k in sorted(indices)} for g in generators]
    return [[draw[k] for k in indices] for draw in draws]


def flow_sde_child(x, v, t, s, first_s, eps):
    """One step of the official code: in g the denominator takes the second time of the grid where t is 1."""
    g = ETA * math.sqrt(t / (1 - (first_s if t == 1 else t)))
    mean = x * (1 + g**2 / (2 * t) * (s - t)) + v * (1 + g**2 * (1 - t) / (2 * t)) * (s - t)
    std = g * math.sqrt(t - s)
    log_density = -((mean + std * eps - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return mean + std * eps, log_density.mean()


def official_tail(evaluate, z, times, k, stride):
    """sigmas[:k + 2] + sigmas[k + 2::stride]; the image is the predicted data at the last time that is evaluated."""
    listed = times[: k + 2] + times[k + 2 :: stride]
    data = z
    for j in range(k + 1, len(listed) - 1):
        v = evaluate(z, listed[j])
        data, z = z - listed[j] * v, z + (listed[j + 1] - listed[j]) * v
    return data


def paper_tail(evaluate, z, times, k, stride):
    """States by their index from the clean end, 0: the tail starts at p, visits what S = {1, 1 + stride, …} holds below it, then 0."""
    from_clean, p = times[::-1], len(times) - 2 - k
    path = [p, *(i for i in range(p - 1, 0, -1) if (i - 1) % stride == 0), 0] if p else [0]
    for i, j in pairwise(path):
        z = z + (from_clean[j] - from_clean[i]) * evaluate(z, from_clean[i])
    return z


def naive_rollout(field, noise, condition, sampler, noises):
    """As the official code: everything recomputed, one state at a time. Samples and log-probabilities, prompt-major."""
    times, tail = sampler.grid.times().tolist(), {"official": official_tail, "paper": paper_tail}[sampler.anchoring]
    samples, scores = [], []
    for prompt in range(len(noise)):

        def evaluate(x, t, prompt=prompt):
            return field(x[None], torch.tensor([t]), condition[prompt : prompt + 1])[0]

        anchor = [noise[prompt]]
        for t, s in pairwise(times):
            anchor.append(anchor[-1] + (s - t) * evaluate(anchor[-1], t))
        for member in range(GROUP):
            for column, k in enumerate(sampler.sde_indices):
                v = evaluate(anchor[k], times[k])
                child, score = flow_sde_child(anchor[k], v, times[k], times[k + 1], times[1], noises[prompt][column][member])
                scores.append(score)
                samples += [tail(evaluate, child, times, k, stride) for stride in sampler.strides]
    rows, columns = len(noise) * GROUP, len(sampler.sde_indices)
    shape = (rows, columns, len(sampler.strides), *noise.shape[1:])
    return torch.stack(samples).reshape(shape), torch.stack(scores).reshape(rows, columns)


@pytest.mark.parametrize("anchoring", ["official", "paper"])
@pytest.mark.parametrize("indices", [(0, 1, 3, 7, 8), (4, 0)], ids=["ascending", "any order"])
def test_sharing_and_batching_give_what_recomputing_everything_gives(curved, prompts, noise, generators, anchoring, indices):
    ours = sampler(anchoring=anchoring, sde_indices=indices)
    x, condition = noise(2), prompts(2)
    samples, scores = naive_rollout(curved, x, condition, ours, step_noise(indices, generators(2), x.shape[1:]))
    drawn = ours.sample(curved, x, condition, generators(2))
    torch.testing.assert_close(drawn.samples, samples, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(drawn.log_prob, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("anchoring", ["official", "paper"])
@pytest.mark.parametrize("strides", [(1,), (1, 2), (3, 1, 2)])
def test_counted_evaluations_are_the_closed_form(curved, recorded, prompts, noise, anchoring, strides):
    ours, spy = sampler(strides=strides, anchoring=anchoring), recorded(curved)
    drawn = ours.sample(spy, noise(2), prompts(2))
    assert drawn.network_evaluations == sum(spy.sizes) == 2 * ours.evaluations()


def test_the_rollout_of_the_paper_takes_1496_evaluations_a_prompt(prompts, noise, recorded):
    spy = recorded(GaussianField())
    ours = sampler(steps=16, sde_indices=range(8), group_size=12, strides=(1, 2))
    assert ours.sample(spy, noise(1), prompts(1)).network_evaluations == sum(spy.sizes) == 1496
    assert len(spy.sizes) == 8 + 15  # the anchor, then one call per depth of the deepest tail
    assert max(spy.sizes) == 12 * 8 * 2
    assert len(spy.times[8].unique()) == 8  # the eight stochastic steps' tails advance together, each at its own time


def test_max_batch_bounds_the_calls_and_changes_nothing_else(curved, recorded, prompts, noise, generators):
    whole = sampler().sample(curved, noise(2), prompts(2), generators(2))
    spy = recorded(curved)
    parts = sampler(max_batch=7).sample(spy, noise(2), prompts(2), generators(2))
    assert max(spy.sizes) == 7
    assert parts.network_evaluations == whole.network_evaluations
    for name in ("samples", "children", "log_prob", "parents"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=2e-6, rtol=2e-6)


def test_a_prompt_gets_the_same_rollout_whichever_prompts_share_its_batch(curved, prompts, noise, generators):
    x, condition, rows = noise(3), prompts(3), sampler().group_size
    together = sampler().sample(curved, x, condition, generators(3))
    for prompt in range(3):
        only, own = slice(prompt, prompt + 1), slice(prompt * rows, (prompt + 1) * rows)
        alone = sampler().sample(curved, x[only], condition[only], generators(1, first=prompt))
        torch.testing.assert_close(alone.samples, together.samples[own], atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(alone.children, together.children[own], atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(alone.log_prob, together.log_prob[own], atol=2e-6, rtol=2e-6)


def test_each_step_stores_one_parent_a_prompt_shared_by_its_group(curved, prompts, noise):
    ours = sampler(sde_indices=(3, 0))
    drawn = ours.sample(curved, noise(2), prompts(2))
    times = ours.grid.times().float()
    assert drawn.parents.shape == (4, 2, 3)
    assert drawn.group.tolist() == [0, 0, 0, 1, 1, 1]
    for row in range(6):
        for column, k in enumerate(ours.sde_indices):
            parent = drawn.parent_index[row, column]
            assert drawn.parent_condition[parent] == row // 3
            assert drawn.t[parent] == times[k]
            assert drawn.s[parent] == times[k + 1]
    torch.testing.assert_close(drawn.parents[drawn.parent_index[:, 1]], noise(2).repeat_interleave(3, 0))
    assert len(drawn.parent_index.unique()) == 4


def test_every_branch_of_every_step_has_noise_of_its_own(prompts, noise):
    """The standardised steps of 2 × 3 × 5 children are 30 independent normal vectors."""
    ours, field = sampler(group_size=40), GaussianField(mean=1.0, std=0.5)
    drawn = ours.sample(field, noise(2), prompts(2), torch.Generator().manual_seed(1))
    index = drawn.parent_index.flatten()
    kernel = ours.dynamics.transition(field(drawn.parents, drawn.t)[index], drawn.parents[index], drawn.t[index], drawn.s[index])
    eps = ((drawn.children.flatten(0, 1) - kernel.mean) / kernel.std).flatten(1)
    assert len(eps.unique(dim=0)) == 2 * 40 * 5
    assert eps.mean().item() == pytest.approx(0, abs=4 / math.sqrt(eps.numel()))
    assert eps.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * eps.numel()))
    per_step = eps.reshape(80, 5, 6).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.corrcoef(per_step), torch.eye(5), atol=4 / math.sqrt(480), rtol=0)


def test_tails_agree_on_a_row_exactly_where_their_lists_agree(curved, prompts, noise):
    """After the last but one step every tail is [steps − 1]; after the last there is none, and the child is the sample."""
    drawn = sampler().sample(curved, noise(1), prompts(1))
    assert torch.equal(drawn.samples[:, 3, 0], drawn.samples[:, 3, 2])
    assert torch.equal(drawn.samples[:, 4, 0], drawn.children[:, 4])
    assert not torch.isclose(drawn.samples[:, 0, 0], drawn.samples[:, 0, 1]).all()


@pytest.mark.parametrize(
    "dynamics", [FlowSDE(noise_level=0.7), DanceSDE(noise_level=0.3), CPS(noise_level=0.8)], ids=["flow", "dance", "cps"]
)
def test_singular_sampling_keeps_the_contract_of_samplers(dynamics, curved, prompts, noise):
    check_sampler(sampler(dynamics=dynamics, sde_indices=(0, 2, 5)), curved, noise(3), prompts(3))


def test_any_solver_may_take_the_tails_and_leaves_the_transitions_alone(curved, prompts, noise, generators):
    """Higher-order tails move the samples towards the exact flow of each child, and change no log-probability."""
    fields = {"steps": 32, "sde_indices": (0, 9), "strides": (1,)}
    euler = sampler(**fields).sample(curved, noise(2), prompts(2), generators(2))
    exact = finely(curved, euler, prompts(2), sampler(**fields).grid.times())
    errors = {"euler": (euler.samples[:, :, 0] - exact).abs().mean()}
    for name, solver in {"heun": Heun(), "dpm": DPMSolverPP2M()}.items():
        drawn = sampler(**fields, tail_solver=solver).sample(curved, noise(2), prompts(2), generators(2))
        torch.testing.assert_close(drawn.log_prob, euler.log_prob)
        torch.testing.assert_close(drawn.children, euler.children)
        errors[name] = (drawn.samples[:, :, 0] - exact).abs().mean()
    assert errors["heun"] < errors["euler"] / 4
    assert errors["dpm"] < errors["euler"] / 2


@pytest.mark.parametrize("solver", [Heun(), DPMSolverPP2M()], ids=str)
def test_every_tail_carries_what_its_solver_remembers_of_its_own_past(solver, curved, prompts, noise):
    """Second route: each tail alone, from its stored child, through the times that the official code lists for it."""
    ours, condition = sampler(tail_solver=solver, sde_indices=(0, 3, 5)), prompts(2)
    drawn, times = ours.sample(curved, noise(2), condition), ours.grid.times().float().tolist()
    for column, k in enumerate(ours.sde_indices):
        for granularity, stride in enumerate(ours.strides):
            listed = (times[: k + 2] + times[k + 2 :: stride])[k + 1 : -1]
            x, memory, rows = drawn.children[:, column], (), condition[drawn.group]
            for t, s in pairwise([*listed, 0.0]):
                at, to = torch.full((2 * GROUP,), t), torch.full((2 * GROUP,), s)
                x, memory = solver.step(curved(x, at, rows), x, at, to, memory, lambda z, u, some, rows=rows: curved(z, u, rows[some]))
            torch.testing.assert_close(drawn.samples[:, column, granularity], x, atol=2e-6, rtol=2e-6)


def finely(field, drawn, condition, times):
    """The flow from every child in 1000 Euler steps."""
    z, t = drawn.children.flatten(0, 1), drawn.s[drawn.parent_index].flatten()
    rows = condition[drawn.group.repeat_interleave(drawn.children.shape[1])]
    for left in range(1000, 0, -1):
        z = z - (t / 1000).reshape(-1, 1, 1) * field(z, t * left / 1000, rows)
    return z.reshape(drawn.children.shape)


def test_heun_counts_what_it_evaluates(curved, recorded, prompts, noise):
    """Tails of 5 and 3 steps (the last is Euler) after k = 2 of 8 by hand: anchor 3 + 2; group 3·(2·5 − 1) for stride 1."""
    spy = recorded(curved)
    drawn = sampler(steps=8, sde_indices=(2,), strides=(1,), solver=Heun()).sample(spy, noise(1), prompts(1))
    assert drawn.network_evaluations == sum(spy.sizes) == 3 + 2 + 3 * 9


def test_states_are_rounded_before_they_are_evaluated_and_scored(curved, prompts, noise):
    ours = sampler(state_dtype="bfloat16")
    condition = prompts(2)
    drawn = ours.sample(curved, noise(2), condition)
    assert drawn.parents.dtype == drawn.children.dtype == torch.bfloat16
    index = drawn.parent_index.flatten()
    parents = drawn.parents.float()
    velocity = curved(parents, drawn.t, condition[drawn.parent_condition])
    kernel = ours.dynamics.transition(velocity[index], parents[index], drawn.t[index], drawn.s[index])
    again = kernel.log_prob(drawn.children.float().flatten(0, 1)).reshape(drawn.log_prob.shape)
    torch.testing.assert_close(drawn.log_prob, again, atol=1e-5, rtol=1e-5)


def test_one_stochastic_step_and_a_fine_tail_end_at_the_data():
    """20000 branches from 10000 noises of the exact field of N(2, 0.5²)."""
    from flowrl.flow import Condition

    ours = sampler(steps=100, sde_indices=(40,), strides=(1,), group_size=2, dynamics=CPS(noise_level=0.7))
    final = ours.sample(GaussianField(mean=2.0, std=0.5), torch.randn(10_000, 1), Condition(rows=10_000)).final
    assert final.mean().item() == pytest.approx(2.0, abs=0.02)
    assert final.std().item() == pytest.approx(0.5, abs=0.02)


def test_nothing_of_a_rollout_carries_a_graph(curved, prompts, noise):
    weight = torch.ones((), requires_grad=True)
    drawn = sampler().sample(lambda x, t, c: weight * curved(x, t, c), noise(1), prompts(1))
    assert not any(getattr(drawn, name).requires_grad for name in ("samples", "children", "parents", "log_prob"))


def test_the_number_of_prompts_and_of_initial_noises_must_agree(curved, prompts, noise):
    with pytest.raises(ValueError, match=r"1 row\(s\) of initial noise per prompt, 2 for 2 prompt\(s\), got 6"):
        sampler().sample(curved, noise(6), prompts(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sde_indices": (0, 9)}, r"must lie in 0 … 8 \(the grid has 9 steps\), got \[9\]"),
        ({"sde_indices": (-1,)}, r"got \[-1\]"),
        ({"sde_indices": (2, 2)}, r"must differ, got \(2, 2\)"),
        ({"sde_indices": ()}, "at least one step must be stochastic"),
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"strides": (0, 1)}, "stride must be at least 1, got 0"),
        ({"strides": (2, 2)}, "strides must be one or more different numbers"),
        ({"strides": ()}, "strides must be one or more different numbers"),
        ({"anchoring": "papier"}, "did you mean 'paper'"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"state_dtype": "float8"}, "unknown state_dtype 'float8'"),
        ({"dynamics": CPS(noise_level=0.5)}, r"steps \[8\] are noise-free under CPS"),
    ],
)
def test_a_sampler_that_cannot_work_is_refused_where_it_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


def test_a_grid_that_does_not_decrease_is_refused():
    class Rising:
        def times(self):
            return torch.tensor([0.2, 0.8, 0.0])

    with pytest.raises(ValueError, match="must strictly decrease"):
        replace(sampler(sde_indices=(0,)), grid=Rising())
