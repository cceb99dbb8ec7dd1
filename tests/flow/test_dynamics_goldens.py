"""Every dynamics against the golden numbers of one step, in float64 and, where public code was run, in float32."""

import json
from pathlib import Path

import pytest
import torch

from flowrl.flow import CPS, ODE, DanceSDE, FlowSDE, Transition, shifted_times
from flowrl.shapes import state_mean

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "sde_steps.json").read_text())
KINDS = {"ode": lambda eta: ODE(), "flow": lambda eta: FlowSDE(noise_level=eta), "dance": lambda eta: DanceSDE(noise_level=eta)}
KINDS["cps"] = lambda eta: CPS(noise_level=eta)
CASES = [pytest.param(c, id=f"{c['kind']}-T{c['T']}-shift{c['shift']:g}-k{c['index']}") for c in GOLDENS["steps"]]
NOISY = [case for case in CASES if case.values[0]["kind"] != "ode"]
FLOAT32 = [case for case in NOISY if "mean_fp32" in case.values[0]]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def state(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(GOLDENS["inputs"][name], dtype=dtype).reshape(GOLDENS["inputs"]["shape"])


def kernel(case: dict, velocity: str | torch.Tensor = "v", dtype: torch.dtype = torch.float64) -> Transition:
    v = state(velocity, dtype) if isinstance(velocity, str) else velocity
    return KINDS[case["kind"]](case["eta"]).transition(v, state("x", dtype), case["sigma"], case["sigma_next"])


def close(actual: torch.Tensor, golden: list[float] | float, **tolerance: float) -> None:
    expected = torch.tensor(golden, dtype=actual.dtype)
    torch.testing.assert_close(actual.reshape(expected.shape), expected, **(tolerance or EXACT))


@pytest.mark.parametrize("case", CASES)
def test_one_step_has_the_golden_mean_and_std(case):
    step = kernel(case)
    close(step.mean, case["mean"])
    close(step.std.expand_as(step.mean), [case["std"]] * step.mean.numel())


@pytest.mark.parametrize("case", CASES)
def test_mean_is_the_golden_combination_of_state_and_velocity(case):
    close(kernel(case).mean, (case["a_x"] * state("x") + case["b_v"] * state("v")).flatten().tolist())


@pytest.mark.parametrize("case", NOISY)
def test_drawing_adds_std_times_noise(case):
    close(kernel(case).sample(noise=state("eps")), case["sample"])


@pytest.mark.parametrize("case", NOISY)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_of_the_stored_sample_is_golden(case, reduction):
    stored = torch.tensor(case["sample"], dtype=torch.float64).reshape(2, 3, 2)
    close(kernel(case).log_prob(stored, reduction=reduction), case[f"log_prob_{reduction}"])


@pytest.mark.parametrize("case", NOISY)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_moved_policy_gives_the_golden_ratio(case, reduction):
    stored = torch.tensor(case["sample"], dtype=torch.float64).reshape(2, 3, 2)
    new = kernel(case, "v2")
    close(new.mean, case["new_mean"])
    log_ratio = new.log_prob(stored, reduction=reduction) - kernel(case).log_prob(stored, reduction=reduction)
    close(log_ratio.exp(), case[f"ratio_{reduction}"])


@pytest.mark.parametrize("case", NOISY)
def test_kl_between_two_policies_is_golden(case):
    close(kernel(case, "v2").kl(kernel(case)), case["kl_true"])
    close(kernel(case).kl(kernel(case, "v2"), reduction="sum"), [6 * kl for kl in case["kl_true"]])


@pytest.mark.parametrize("case", NOISY)
def test_log_ratio_splits_into_noise_times_shift_minus_kl(case):
    """GRPO-Guard: (dlogp + KL)·std = mean(eps·dmu), whatever the dynamics."""
    old, new = kernel(case), kernel(case, "v2")
    stored = old.sample(noise=state("eps"))
    guard = (new.log_prob(stored) - old.log_prob(stored) + new.kl(old)) * case["std"]
    close(guard.exp(), case["ratio_guard"])
    close(state_mean(state("eps") * (new.mean - old.mean)).exp(), case["exp_mean_eps_dmu"])


@pytest.mark.parametrize("case", NOISY)
def test_gradient_of_log_prob_with_respect_to_the_velocity_is_golden(case):
    velocity = state("v").requires_grad_()
    stored = torch.tensor(case["sample"], dtype=torch.float64).reshape(2, 3, 2)
    (gradient,) = torch.autograd.grad(kernel(case, velocity).log_prob(stored).sum(), velocity)
    close(gradient, case["dlogp_dv"])
    close(gradient, (case["b_v"] * state("eps") / (6 * case["std"])).flatten().tolist())


@pytest.mark.parametrize("case", FLOAT32)
def test_float32_agrees_with_the_public_code_in_float32(case):
    step = kernel(case, dtype=torch.float32)
    assert step.mean.dtype == step.std.dtype == torch.float32
    close(step.mean, case["mean_fp32"], rtol=1e-6, atol=1e-6)
    sample = step.sample(noise=state("eps", torch.float32))
    close(sample, case["sample_fp32"], rtol=1e-6, atol=1e-6)
    close(step.log_prob(sample), case["log_prob_mean_fp32"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "steps", "shift"), [("T16_shift3", 16, 3.0), ("T16_shift1", 16, 1.0), ("T10_shift3", 10, 3.0), ("T25_shift3", 25, 3.0)]
)
def test_shifted_times_are_golden(name, steps, shift):
    times = shifted_times(steps=steps, shift=shift)
    close(times.double(), GOLDENS["schedules"][name])
    assert times[0] == 1
    assert times[-1] == 0
