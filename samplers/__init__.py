"""How a trajectory is drawn: grids of noise levels, solvers, and samplers with and without noise."""

from samplers.diffusion_grid import DiffusionGrid
from samplers.granular import granular_indices, singular_evaluations
from samplers.grids import DynamicShiftGrid, ExplicitGrid, ShiftedGrid, TimeGrid
from samplers.ode import ODESampler
from samplers.per_token import PerTokenSchedule
from samplers.sde import SDESampler
from samplers.singular import SingularStochasticSampler
from samplers.solvers import DPMSolverPP2M, Euler, Heun, Solver
from samplers.window import WindowSampler

OWNER = "flowrl"

__all__ = [
    "OWNER",
    "DPMSolverPP2M",
    "DiffusionGrid",
    "DynamicShiftGrid",
    "Euler",
    "ExplicitGrid",
    "Heun",
    "ODESampler",
    "PerTokenSchedule",
    "SDESampler",
    "ShiftedGrid",
    "SingularStochasticSampler",
    "Solver",
    "TimeGrid",
    "WindowSampler",
    "granular_indices",
    "singular_evaluations",
]
