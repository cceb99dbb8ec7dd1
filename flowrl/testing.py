"""Checkers for what users write: each runs a whole contract and names every clause that does not hold.

Example:
    >>> import torch
    >>> from flowrl.flow import Condition
    >>> from flowrl.testing import GaussianField, check_field
    >>> check_field(GaussianField(mean=2.0, std=0.5), torch.randn(3, 4), Condition(rows=3))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.errors import FlowrlError
from flowrl.flow import Condition, evaluations_per_state
from flowrl.rl import RewardBatch, StepBatch
from flowrl.shapes import Time, expand_time, float_dtype, seeded_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.flow import Sampler, Trajectory, VelocityField
    from flowrl.rl import Objective, Reward

__all__ = ["ContractError", "GaussianField", "check_field", "check_objective", "check_reward", "check_sampler"]


class ContractError(FlowrlError, ValueError):
    """A component does not keep its contract; the message lists every clause that it breaks."""


@dataclass(frozen=True, kw_only=True)
class GaussianField:
    """The exact velocity of the rectified flow whose data are ``N(mean, std²)``, independently in every entry of the state.

    ``v = E[noise − data | x_t] = −mean + (t − (1 − t)·std²) / ((1 − t)²·std² + t²) · (x_t − (1 − t)·mean)``

    Every marginal is known, ``x_t ~ N((1 − t)·mean, (1 − t)²·std² + t²)``, so samplers and losses can be tested against it.

    Attributes:
        mean: Of the data, a number or a tensor that broadcasts over a state.
        std: Of the data, > 0, likewise.

    Raises:
        ValueError: If ``std`` is not positive.
    """

    mean: float | Tensor = 0.0
    std: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.std) > 0).all()):
            raise ValueError(f"std must be > 0, got {self.std}")

    def __call__(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Tensor:
        """The velocity at ``x_t``, which does not depend on the condition."""
        del condition
        time, variance = expand_time(t, x_t), torch.as_tensor(self.std, device=x_t.device) ** 2
        mean = torch.as_tensor(self.mean, device=x_t.device)
        gain = (time - (1 - time) * variance) / ((1 - time) ** 2 * variance + time**2)
        return (gain * (x_t - (1 - time) * mean) - mean).to(float_dtype(x_t))


def check_field(field: VelocityField, x: Tensor, condition: Condition, *, tolerance: float = 1e-5, start: float = 1.0) -> None:
    """Check a velocity field: shape, dtype, finiteness, determinism, and that rows and times do not mix.

    Args:
        field: What to check.
        x: States (batch, ...), at least two that differ; left unchanged by a correct field.
        condition: One row a state.
        tolerance: Absolute and relative, between two evaluations of the same row.
        start: Largest noise level at which the field can be asked; below 1 for diffusion models, whose schedule ends before pure noise.

    Raises:
        ContractError: With every clause that does not hold.
    """
    rows = _rows(x, len(condition), "one condition row a state")
    clauses, before = _Clauses("the velocity field", tolerance), x.clone()
    times = torch.linspace(start, 0.1, rows, device=x.device)
    flipped = torch.arange(rows - 1, -1, -1, device=x.device)
    with torch.no_grad():
        velocity = field(x, times, condition)
        clauses.require(velocity.shape == x.shape, f"returns the state's shape {tuple(x.shape)}, not {tuple(velocity.shape)}")
        clauses.require(velocity.dtype == torch.float32, f"returns float32 for a float32 state, not {velocity.dtype}")
        clauses.finite(velocity, f"velocities are finite at times from {start:g} to 0.1")
        clauses.same(field(x, times, condition), velocity, "two calls with the same arguments agree (dropout off, no fresh noise)")
        permuted = field(x[flipped], times[flipped], condition[flipped])
        clauses.same(permuted.flip(0), velocity, "permuting rows, times and conditions permutes velocities")
        alone = torch.cat([field(x[i : i + 1], times[i : i + 1], condition[i : i + 1]) for i in range(rows)])
        clauses.same(alone, velocity, "a row's velocity does not depend on the other rows of the batch")
        for t in (start, 0.5):
            filled = field(x, torch.full((rows,), t, device=x.device), condition)
            clauses.same(field(x, torch.tensor(t, device=x.device), condition), filled, f"a scalar time equals a (batch,) time, at t = {t}")
    clauses.require(torch.equal(x, before), "the states given are not modified")
    clauses.finish()


def check_reward(reward: Reward, samples: Tensor, prompts: Sequence[str], *, tolerance: float = 1e-5) -> None:
    """Check a reward: names, shapes, finiteness, determinism, and that rows do not mix.

    Args:
        reward: What to check.
        samples: Pictures (batch, 3, height, width) in [0, 1], at least two that differ.
        prompts: One a picture.
        tolerance: Absolute and relative, between two scores of the same row.

    Raises:
        ContractError: With every clause that does not hold.
    """
    rows = _rows(samples, len(prompts), "one prompt a sample")
    clauses, before = _Clauses("the reward", tolerance), samples.clone()
    weights = dict(reward.weights)
    usable = bool(weights) and all(map(math.isfinite, weights.values()))
    clauses.require(usable, f"weights are finite and there is one at least, got {weights}")
    scores = reward(samples, prompts)
    if not isinstance(scores, RewardBatch):
        wanted = f"flowrl.rl.RewardBatch({{'name': scores of shape ({rows},)}})"
        raise ContractError(f"the reward returned a {type(scores).__name__}; return {wanted}")
    clauses.require(set(scores.parts) == set(weights), f"the parts {sorted(scores.parts)} have the names of the weights {sorted(weights)}")
    again, flipped = reward(samples, prompts), reward(samples.flip(0), list(prompts)[::-1])
    first = reward(samples[:1], list(prompts)[:1])
    for name, part in scores.parts.items():
        clauses.require(part.shape == (rows,), f"part {name!r} has the shape ({rows},), not {tuple(part.shape)}")
        clauses.require(part.is_floating_point(), f"part {name!r} is floating point, not {part.dtype}")
        clauses.finite(part, f"part {name!r} is finite")
        clauses.same(again.parts.get(name), part, f"part {name!r} is the same when scored again")
        clauses.same(flipped.parts.get(name), part.flip(0), f"permuting samples and prompts permutes part {name!r}")
        clauses.same(first.parts.get(name), part[:1], f"part {name!r} of a sample does not depend on the rest of the batch")
    clauses.require(torch.equal(samples, before), "the samples given are not modified")
    clauses.finish()


def check_sampler(
    sampler: Sampler,
    field: VelocityField,
    noise: Tensor,
    condition: Condition,
    *,
    evaluations: int | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Check a sampler against the contract of :class:`flowrl.flow.Trajectory`.

    Args:
        sampler: What to check, as it is for one update (after ``for_update``).
        field: Any velocity field, such as :class:`GaussianField`.
        noise: Initial states (prompt · noise_rows, *state).
        condition: One row a prompt, at least two.
        evaluations: States that the network should evaluate per prompt; by default what ``sampler.evaluations()`` promises,
            which counts solvers of one evaluation a step.
        tolerance: Absolute and relative, on states and on recomputed log-probabilities (nats per dimension).

    Raises:
        ContractError: With every clause that does not hold.
    """
    prompts = _rows(condition, len(noise) // max(sampler.noise_rows(), 1), "noise_rows() rows of noise a prompt")
    clauses, spy = _Clauses("the sampler", tolerance), _SpiedField(field)
    before = noise.clone()
    drawn = sampler.sample(spy, noise, condition, [seeded_generator(prompt) for prompt in range(prompts)])
    _check_layout(clauses, sampler, drawn, noise.shape[1:], prompts)
    clauses.finish()  # the rest relies on the layout
    _check_parents(clauses, drawn, prompts)
    clauses.finish()
    _check_scores(clauses, sampler, drawn, field, condition)
    _check_alone(clauses, sampler, drawn, field, noise, condition)
    counted = spy.states * evaluations_per_state(field)
    reported = drawn.network_evaluations
    clauses.require(reported == counted, f"network_evaluations = {reported} is what was evaluated, {counted}")
    expected = (sampler.evaluations() if evaluations is None else evaluations) * prompts * evaluations_per_state(field)
    clauses.require(counted == expected, f"evaluations() · prompts · (field's own) = {expected} is what was evaluated, {counted}")
    clauses.require(torch.equal(noise, before), "the noise given is not modified")
    clauses.finish()


def check_objective(
    objective: Objective, *, context: StepBatch | None = None, scale: float | Tensor = 1.0, tolerance: float = 1e-5
) -> None:
    """Check an objective: the policy gradient at ratio 1, masks, metrics, micro-batches and its state.

    Args:
        objective: What to check; its dual variables, if any, may change.
        context: For 6 rows and 4 steps; by default everything an on-policy batch has.
        scale: The documented scale of the gradient at ratio 1, a number or (6, 4).
        tolerance: Absolute and relative, on gradients and losses.

    Raises:
        ContractError: With every clause that does not hold.
    """
    clauses = _Clauses("the objective", tolerance)
    mask = torch.arange(24).reshape(6, 4) % 5 != 1
    advantage = torch.randn(6, generator=seeded_generator(0))
    per_step, hole = advantage[:, None].expand(6, 4), torch.where(mask, 0.0, torch.nan)
    expected = torch.where(mask, -scale * per_step / mask.sum(), 0.0)
    cases = {"an advantage (batch,)": (advantage, hole.nan_to_num()), "one of (batch, step)": (per_step, hole.nan_to_num())}
    cases["NaN in all that is masked"] = (per_step + hole, hole)
    for case, (given, log_ratio) in cases.items():
        loss, metrics, gradient = _differentiate(objective, log_ratio, given, mask, context)
        clauses.same(gradient, expected, f"with {case} the gradient at ratio 1 is −A / number of kept entries")
        clauses.require(bool((gradient[~mask] == 0).all()), f"with {case} masked entries get exactly zero gradient")
        clauses.finite(loss, f"with {case} the loss is finite")
        broken = sorted(name for name, value in metrics.items() if value.ndim or value.requires_grad or not value.isfinite())
        clauses.require(not broken, f"with {case} metrics are finite scalars without a graph, unlike {broken}")
    clauses.require(_refuses_empty_mask(objective, advantage, context), "a mask that keeps nothing is refused with a ValueError")
    if objective.separable:
        _check_split(clauses, objective, advantage, mask, context)
    state = objective.state_dict()
    objective.load_state_dict(state)
    clauses.require(repr(objective.state_dict()) == repr(state), "state_dict survives load_state_dict")
    clauses.finish()


class _Clauses:
    """Collects the clauses that do not hold."""

    def __init__(self, subject: str, tolerance: float) -> None:
        self.subject, self.tolerance = subject, tolerance
        self.broken: list[str] = []

    def require(self, holds: bool, clause: str) -> None:  # noqa: FBT001  the one thing it is about
        if not holds:
            self.broken.append(clause)

    def finite(self, values: Tensor, clause: str) -> None:
        self.require(bool(torch.isfinite(values).all()), clause)

    def same(self, actual: Tensor | None, expected: Tensor, clause: str) -> None:
        comparable = actual is not None and actual.shape == expected.shape and actual.dtype == expected.dtype
        if (
            actual is None
            or not comparable
            or not torch.allclose(actual, expected, rtol=self.tolerance, atol=self.tolerance, equal_nan=True)
        ):
            gap = f" (largest difference {float((actual - expected).abs().max()):.3g})" if actual is not None and comparable else ""
            self.broken.append(clause + gap)

    def finish(self) -> None:
        if self.broken:
            raise ContractError(f"{self.subject} breaks its contract; these clauses do not hold:\n- " + "\n- ".join(self.broken))


class _SpiedField:
    """A field that counts states and whose velocities carry a graph, as a trained network's do."""

    def __init__(self, field: VelocityField) -> None:
        self.field, self.states = field, 0
        self.evaluations = evaluations_per_state(field)
        self._weight = torch.ones((), requires_grad=True)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        self.states += len(x_t)
        return self.field(x_t, t, condition) * self._weight


def _rows(given: Tensor | Condition, partners: int, relation: str) -> int:
    if len(given) < 2 or partners != len(given):  # noqa: PLR2004  one row cannot show that rows mix
        raise ValueError(f"the check needs two rows or more and {relation}, got {len(given)} and {partners}")
    return len(given)


def _check_layout(clauses: _Clauses, sampler: Sampler, drawn: Trajectory, state: torch.Size, prompts: int) -> None:
    rows, parents = prompts * sampler.group_size, len(drawn.parents)
    step, *_ = (*drawn.children.shape[1:2], 0)
    views = (*drawn.samples.shape[1:3], 0, 0)[:2]
    shapes = {"parents": (parents, *state), "children": (rows, step, *state), "group": (rows,), "samples": (rows, *views, *state)}
    shapes |= dict.fromkeys(("t", "s", "parent_condition"), (parents,)) | dict.fromkeys(("parent_index", "log_prob"), (rows, step))
    for name, shape in shapes.items():
        tensor = getattr(drawn, name)
        clauses.require(tuple(tensor.shape) == shape, f"{name} has the shape {shape}, not {tuple(tensor.shape)}")
        clauses.finite(tensor, f"{name} is finite")
        clauses.require(not tensor.requires_grad, f"{name} keeps no autograd graph")
    clauses.require(views[0] in {1, step}, f"samples have one view, or one a stochastic step ({step}), not {views[0]}")
    clauses.require(drawn.log_prob.dtype == torch.float32, f"log_prob is float32, not {drawn.log_prob.dtype}")
    for name in ("parent_condition", "parent_index", "group"):
        clauses.require(not getattr(drawn, name).is_floating_point(), f"{name} is integer")


def _check_parents(clauses: _Clauses, drawn: Trajectory, prompts: int) -> None:
    rows, index, owner = len(drawn.group), drawn.parent_index, drawn.parent_condition
    expected = torch.arange(prompts).repeat_interleave(rows // prompts)
    clauses.require(torch.equal(drawn.group.cpu().long(), expected), "group is prompt-major: each prompt group_size times in a row")
    clauses.require(bool(((drawn.s >= 0) & (drawn.s < drawn.t) & (drawn.t <= 1)).all()), "times satisfy 0 <= s < t <= 1")
    inside = bool(((index >= 0) & (index < len(owner))).all() and ((owner >= 0) & (owner < prompts)).all())
    clauses.require(inside, "parent_index and parent_condition are in range")
    if inside:
        clauses.require(bool((owner[index] == drawn.group[:, None]).all()), "a child's parent belongs to the child's own prompt")
        clauses.require(len(index.unique()) == len(owner), "every parent has a child")


def _check_scores(clauses: _Clauses, sampler: Sampler, drawn: Trajectory, field: VelocityField, condition: Condition) -> None:
    if not drawn.log_prob.numel():
        return
    parents, index = drawn.parents.to(float_dtype(drawn.parents)), drawn.parent_index.flatten()
    with torch.no_grad():
        velocity = field(parents, drawn.t, condition[drawn.parent_condition])
    kernel = sampler.dynamics.transition(velocity[index], parents[index], drawn.t[index], drawn.s[index])
    log_prob = kernel.log_prob(drawn.children.flatten(0, 1)).reshape(drawn.log_prob.shape)
    clauses.same(log_prob.float(), drawn.log_prob, "log_prob is that of the stored children under the dynamics, from the stored parents")


def _check_alone(clauses: _Clauses, sampler: Sampler, drawn: Trajectory, field: VelocityField, noise: Tensor, condition: Condition) -> None:
    alone = sampler.sample(field, noise[: sampler.noise_rows()], condition[:1], [seeded_generator(0)])
    for name in ("samples", "children", "log_prob"):
        whole = getattr(drawn, name)[: sampler.group_size]
        clauses.same(getattr(alone, name), whole, f"{name} of a prompt with its own generator do not depend on the other prompts")


def _differentiate(
    objective: Objective, log_ratio: Tensor, advantage: Tensor, mask: Tensor, context: StepBatch | None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    leaf = log_ratio.clone().requires_grad_()
    loss, metrics = objective(leaf, advantage, mask, context or _on_policy(leaf, advantage))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), metrics, gradient


def _on_policy(log_ratio: Tensor, advantage: Tensor) -> StepBatch:
    """All that a context may hold, for a policy that is the reference and the one that rolled out."""
    zeros, row = torch.zeros_like(log_ratio), advantage.reshape(len(log_ratio), -1).nan_to_num()[:, 0]
    return StepBatch(
        kappa=zeros,
        kl_reference=zeros,
        log_prob=log_ratio - 1,
        step_std=zeros + 0.5,
        reward=row[:, None],
        group_ids=torch.arange(len(log_ratio)) % 2,
        target_advantage=row,
    )


def _refuses_empty_mask(objective: Objective, advantage: Tensor, context: StepBatch | None) -> bool:
    log_ratio = torch.zeros(6, 4)
    try:
        objective(log_ratio, advantage, torch.zeros(6, 4, dtype=torch.bool), context or _on_policy(log_ratio, advantage))
    except ValueError:
        return True
    return False


def _check_split(clauses: _Clauses, objective: Objective, advantage: Tensor, mask: Tensor, context: StepBatch | None) -> None:
    """Off-policy, so that clips and gates act; as the trainer splits, which is by entry and not by row."""
    log_ratio = 0.3 * torch.randn(mask.shape, generator=seeded_generator(1))
    everything = context or _on_policy(log_ratio, advantage)
    whole, _ = objective(log_ratio, advantage, mask, everything)
    total = torch.zeros(())
    for entries in mask.nonzero().tensor_split(3):
        row, step = entries.unbind(1)
        kept = torch.ones(len(row), 1, dtype=torch.bool)
        loss, _ = objective(log_ratio[row, step, None], advantage[row], kept, _entries(everything, row, step, mask.shape))
        total = total + loss * len(row) / mask.sum()
    clauses.same(total, whole, "a separable loss is the sum of its parts' by their kept entries, wherever entries stand")


def _entries(context: StepBatch, row: Tensor, step: Tensor, shape: torch.Size) -> StepBatch:
    """Single (row, step) entries of a context, as rows of one step."""
    given = {field.name: getattr(context, field.name) for field in fields(context)}
    picked = {name: value[row, step, None] if value.shape == shape else value[row] for name, value in given.items() if value is not None}
    return StepBatch(**picked)
