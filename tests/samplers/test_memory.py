"""What a rollout holds does not grow with its steps."""

import gc

import pytest
import torch

from flowrl.flow import Condition, DanceSDE, FlowSDE
from samplers import DPMSolverPP2M, ODESampler, SDESampler, ShiftedGrid, SingularStochasticSampler, WindowSampler

ELEMENTS = 512


class Watched:
    """A field that counts the elements of all states that are alive whenever it is called."""

    def __init__(self):
        self.peak = 0

    def __call__(self, x_t, t, condition):
        storages = {}
        for tensor in gc.get_objects():
            if type(tensor) is torch.Tensor and tensor.numel() >= ELEMENTS:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        self.peak = max(self.peak, sum(storages.values()))
        return 0.1 * x_t


@pytest.fixture
def peak():
    """Most elements alive at any call of the field during a rollout of one prompt."""

    def measure(sampler):
        field, noise = Watched(), torch.randn(sampler.noise_rows(), ELEMENTS)
        gc.collect()
        gc.freeze()  # leave out what was alive before, and keep the counting fast
        try:
            sampler.sample(field, noise, Condition(rows=1))
        finally:
            gc.unfreeze()
        return field.peak

    return measure


def singular(steps, **changes):
    fields = {"group_size": 3, "sde_indices": (0, 2), "strides": (1, 2)} | changes
    return SingularStochasticSampler(grid=ShiftedGrid(steps=steps), dynamics=FlowSDE(noise_level=0.7), **fields)


BUILDS = {
    "singular": singular,
    "singular, DPM++ tails": lambda steps: singular(steps, solver=DPMSolverPP2M()),
    "window": lambda steps: WindowSampler(grid=ShiftedGrid(steps=steps), dynamics=FlowSDE(noise_level=0.7), group_size=3, size=2, start=1),
    "two steps trained of all": lambda steps: SDESampler(
        grid=ShiftedGrid(steps=steps), dynamics=DanceSDE(noise_level=0.3), group_size=3, trained_indices=(1, 2)
    ),
    "ODE": lambda steps: ODESampler(grid=ShiftedGrid(steps=steps), group_size=3),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_eight_times_the_steps_hold_no_more_states(build, peak):
    peaks = [peak(build(steps)) for steps in (8, 64)]
    assert 0 < peaks[1] <= peaks[0]


def test_the_count_sees_states_that_are_kept(peak):
    """Training two more steps keeps their children, and the samples of both strides."""
    more = peak(singular(8, sde_indices=(0, 1, 2, 3))) - peak(singular(8))
    assert more >= 2 * 3 * (1 + 2) * ELEMENTS
