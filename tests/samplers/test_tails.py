"""Tails of a field that has one of its own: whole paths of fixed rows, and what they share with the plain ones."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from flowrl.flow import FlowSDE
from samplers import DPMSolverPP2M, Heun, SDESampler, ShiftedGrid, SingularStochasticSampler, WindowSampler

GRID, DYNAMICS = ShiftedGrid(steps=6, shift=3.0), FlowSDE(noise_level=0.7)


@dataclass
class Watched:
    """A field with a tail: ``inner`` plus ``shift``; of each path it notes the sizes and the times of its calls."""

    inner: object
    shift: float = 0.0
    paths: list = field(default_factory=list)

    def __call__(self, x_t, t, condition):
        return self.inner(x_t, t, condition)

    @contextmanager
    def tail(self):
        self.paths.append([])

        def shifted(x_t, t, condition):
            self.paths[-1].append((len(x_t), {round(float(time), 4) for time in torch.as_tensor(t).expand(len(x_t))}))
            return self.inner(x_t, t, condition) + self.shift

        yield shifted


def singular(**fields):
    return SingularStochasticSampler(grid=GRID, dynamics=DYNAMICS, group_size=2, sde_indices=(0, 2, 5), strides=(1, 2), **fields)


SAMPLERS = {
    "singular": singular(),
    "singular, DPM": singular(tail_solver=DPMSolverPP2M()),
    "chain": SDESampler(grid=GRID, dynamics=DYNAMICS, group_size=2, sde_indices=(1, 2), tail_stride=2),
    "chain, Heun": SDESampler(grid=GRID, dynamics=DYNAMICS, group_size=2, sde_indices=(1,), tail_solver=Heun()),
    "window": WindowSampler(grid=GRID, dynamics=DYNAMICS, group_size=2, size=2),
    "to the end": SDESampler(grid=GRID, dynamics=DYNAMICS, group_size=2),
}


def drawn(sampler, of, prompts, noise):
    return sampler.sample(of, noise(2 * sampler.noise_rows()), prompts(2), [torch.Generator().manual_seed(seed) for seed in (1, 2)])


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_tail_that_is_the_field_itself_changes_nothing(sampler, curved, prompts, noise):
    plain, tailed = drawn(sampler, curved, prompts, noise), drawn(sampler, Watched(curved), prompts, noise)
    torch.testing.assert_close(tailed.samples, plain.samples, atol=1e-6, rtol=1e-5)
    for name in ("parents", "children", "log_prob", "t", "s", "group"):
        assert torch.equal(getattr(tailed, name), getattr(plain, name)), name


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_another_tail_moves_samples_and_never_a_transition(sampler, curved, prompts, noise):
    plain, tailed = drawn(sampler, curved, prompts, noise), drawn(sampler, Watched(curved, shift=1.0), prompts, noise)
    for name in ("parents", "children", "log_prob", "t", "s", "group"):
        assert torch.equal(getattr(tailed, name), getattr(plain, name)), name
    has_tail = sampler is not SAMPLERS["to the end"]
    assert torch.equal(tailed.samples, plain.samples) is not has_tail


def test_a_constant_error_of_the_tail_shifts_a_sample_by_the_time_that_it_acts(curved, prompts, noise):
    """``x_s = x_t + (s - t)·v``: on a field that ignores its state, an error of 1 from the child's time to 0 subtracts that time."""
    still = lambda x_t, t, condition: torch.zeros_like(x_t)  # noqa: E731
    sampler = singular()
    plain, tailed = drawn(sampler, still, prompts, noise), drawn(sampler, Watched(still, shift=1.0), prompts, noise)
    times = GRID.times()
    for column, k in enumerate(sampler.sde_indices):
        expected = times[k + 1].expand_as(plain.samples[:, column]).to(plain.samples)
        torch.testing.assert_close(tailed.samples[:, column] - plain.samples[:, column], -expected, atol=1e-6, rtol=0)


def test_each_path_has_rows_of_its_own_at_one_falling_time(curved, prompts, noise):
    watched = Watched(curved)
    drawn(singular(max_batch=3), watched, prompts, noise)
    assert len(watched.paths) == 2 * 2 * 2  # steps with a tail, strides, batches of 3 and 1 rows
    for path in watched.paths:
        assert {size for size, _ in path} in ({3}, {1})
        times = [time for _, times in path for time in times]
        assert len(times) == len(path)  # one time a call
        assert times == sorted(times, reverse=True)


def test_evaluations_of_tails_are_counted(curved, prompts, noise):
    watched = Watched(curved)
    found = drawn(singular(), watched, prompts, noise)
    anchors = 2 * 6  # two prompts, as far as the last stochastic step
    assert found.network_evaluations == anchors + sum(size for path in watched.paths for size, _ in path)
