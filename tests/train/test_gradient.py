"""The gradient of one update against closed forms and against autograd on the formula written out."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from toys import DYNAMICS, GRID, LinearNet, N, TableNet, ToyModel, gradient, make_experience, make_learner, sde

from flowrl.errors import ConfigError
from flowrl.rl import PolicyGradient, PPOClip, StepBatch
from samplers import SingularStochasticSampler, WindowSampler

ETA = DYNAMICS.noise_level
GROUP, PROMPTS = 4, 2
SAMPLERS = {
    "singular": SingularStochasticSampler(grid=GRID, dynamics=DYNAMICS, group_size=GROUP, sde_indices=(0, 1, 3), strides=(1,)),
    "window": WindowSampler(grid=GRID, dynamics=DYNAMICS, group_size=GROUP, size=2, start=1),
    "all steps": sde(),
}


def table():
    return ToyModel(TableNet(GRID.times()))


def coefficients(step):
    """a, b and std of the Flow-SDE step as the G²RPO paper (arXiv:2510.01982) and its code have them."""
    t, s = float(GRID.times()[step]), float(GRID.times()[step + 1])
    g2 = ETA**2 * t / (1 - (s if t == 1 else t))
    return 1 + g2 / (2 * t) * (s - t), (1 + g2 * (1 - t) / (2 * t)) * (s - t), math.sqrt(g2 * (t - s))


def by_hand(model, experience, indices):
    """dL/dv = -b/(G·N·std)·sum_i A_i·eps_i for every step and prompt, over the number of (step, prompt) pairs: section 7.3(4)."""
    trajectory, velocity = experience.trajectory, model.module.velocity.detach()
    expected = torch.zeros_like(velocity)
    for row in range(len(trajectory.children)):
        for column, step in enumerate(indices):
            a, b, std = coefficients(step)
            prompt = int(trajectory.group[row])
            parent = trajectory.parents[trajectory.parent_index[row, column]]
            eps = (trajectory.children[row, column] - a * parent - b * velocity[step, prompt]) / std
            share = 1 / (GROUP * PROMPTS * len(indices))
            expected[step, prompt] -= share * b / (N * std) * experience.advantage[row, column] * eps
    return expected


@pytest.mark.parametrize(("name", "indices"), [("singular", (0, 1, 3)), ("window", (1, 2)), ("all steps", (0, 1, 2, 3))])
@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_gradient_of_an_update_is_the_closed_form_however_it_is_batched(name, indices, micro_batch):
    model = table()
    experience = make_experience(model, SAMPLERS[name])
    expected = by_hand(model, experience, indices)
    found = gradient(make_learner(model, micro_batch=micro_batch), experience)["velocity"]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-7)


def test_one_optimiser_step_per_denoising_step_takes_each_steps_own_mean():
    model, sampler = table(), SAMPLERS["singular"]
    experience = make_experience(model, sampler)
    expected = len(sampler.sde_indices) * by_hand(model, experience, sampler.sde_indices)
    found = gradient(make_learner(model, minibatches=3), experience)["velocity"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-7)


def test_optimiser_steps_go_from_the_noisiest_time_to_the_cleanest():
    model, seen = ToyModel(LinearNet()), []
    experience = make_experience(model, SAMPLERS["singular"])
    model.module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1].unique().tolist()))
    make_learner(model, minibatches=3).update(experience)
    assert seen == [[pytest.approx(float(GRID.times()[step]))] for step in (0, 1, 3)]


def test_minibatches_of_samples_hold_all_steps_of_their_rows_and_take_their_own_mean():
    model, seen = table(), []
    experience = make_experience(model, SAMPLERS["all steps"])
    expected = 2 * by_hand(model, experience, (0, 1, 2, 3))
    model.module.register_forward_hook(lambda module, inputs, output: seen.append([inputs[2].unique().tolist(), len(inputs[1].unique())]))
    found = gradient(make_learner(model, micro_batch=100, minibatches=2, cut_by="sample"), experience)["velocity"]
    assert seen == [[[0], 4], [[1], 4]]  # rows of the first prompt at all four times, then those of the second
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-7)


def test_a_shared_parent_goes_with_the_first_of_its_samples_and_empty_minibatches_are_refused():
    model = table()
    experience = make_experience(model, SAMPLERS["singular"])  # one parent per prompt and step, shared by all four samples of the prompt
    parts = experience.cut_by_sample(2)
    assert [sorted(experience.trajectory.parent_condition[part].tolist()) for part in parts] == [[0, 0, 0], [1, 1, 1]]
    assert all((experience.trajectory.t[part].diff() < 0).all() for part in parts)
    with pytest.raises(ConfigError, match="minibatches is 3, but 8 samples per process with 6 states to train, some of them shared"):
        make_learner(model, minibatches=3, cut_by="sample").update(experience)


@pytest.mark.parametrize("clip", [0.1, 1e-4])
def test_the_second_epoch_has_the_gradient_of_the_clipped_ratio(clip):
    model = table()
    experience = make_experience(model, SAMPLERS["singular"])
    start = model.module.velocity.detach().clone()
    first = by_hand(model, experience, (0, 1, 3))
    found = gradient(make_learner(model, PPOClip(clip=clip), epochs=2), experience)["velocity"]
    velocity = (start - first).requires_grad_()
    losses = []
    for row, (column, step) in [(row, pair) for row in range(GROUP * PROMPTS) for pair in enumerate((0, 1, 3))]:
        a, b, std = coefficients(step)
        prompt = row // GROUP
        x = a * experience.trajectory.parents[experience.trajectory.parent_index[row, column]]
        child = experience.trajectory.children[row, column]
        old, new = [-((child - x - b * v[step, prompt]) ** 2).mean() / (2 * std**2) for v in (start, velocity)]
        ratio, advantage = (new - old).exp(), experience.advantage[row, column]
        losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage))
    (second,) = torch.autograd.grad(torch.stack(losses).mean(), velocity)
    assert (second.abs() > 1e-6).any()
    torch.testing.assert_close(found, first + second, rtol=1e-3, atol=1e-6)


def test_the_kl_to_the_reference_has_the_value_and_the_gradient_of_the_closed_form():
    model, weight = table(), 0.3
    reference = model.module.velocity.detach().clone()
    with torch.no_grad():
        model.module.velocity += 0.2 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(5))
    moved = model.module.velocity.detach().clone()
    experience = make_experience(model, SAMPLERS["singular"])
    experience.advantage.zero_()
    learner = make_learner(model, PPOClip(kl_weight=weight), micro_batch=2)
    metrics = learner.update(experience)
    value, slope = 0.0, torch.zeros_like(moved)
    for step in (0, 1, 3):
        _, b, std = coefficients(step)
        shift = (moved - reference)[step, :PROMPTS]
        value += float((b * shift).square().flatten(1).mean(1).sum()) / (2 * std**2) / (3 * PROMPTS)
        slope[step, :PROMPTS] = weight * b**2 * shift / (N * std**2) / (3 * PROMPTS)
    assert metrics["kl"] == pytest.approx(value, rel=1e-5)
    assert metrics["loss"] == pytest.approx(weight * value, rel=1e-5)
    torch.testing.assert_close(moved - model.module.velocity.detach(), slope, rtol=1e-4, atol=1e-7)


@dataclass(frozen=True)
class Coupled:
    """Entries of a group act on each other, and ratios on the KL."""

    kl_weight: float = 0.5
    separable: ClassVar[bool] = False

    def __call__(self, log_ratio, advantage, mask, context=None):
        kept = log_ratio * mask
        groups = torch.stack([kept[context.group_ids == group].exp().sum() for group in context.group_ids.unique()])
        kl = torch.where(mask, context.kl_reference, 0.0).sum()
        loss = (
            -(advantage * kept.exp() * mask).sum() / mask.sum() + groups.square().mean() + self.kl_weight * kl * kept.exp().mean() + kl**2
        )
        return loss, {"kl": kl.detach()}


def coupled_loss(model, reference, experience, columns):
    """The objective on the transitions that start at some steps, with one graph over all of them."""
    trajectory = experience.trajectory
    log_ratio, kl = torch.zeros_like(trajectory.log_prob), torch.zeros_like(trajectory.log_prob)
    for column in columns:
        step = (0, 1, 3)[column]
        a, b, std = coefficients(step)
        parents = trajectory.parents[trajectory.parent_index[:, column]]
        t = GRID.times()[step].float().expand(len(parents))
        mean, mean_ref = [a * parents + b * net(parents, t, trajectory.group) for net in (model.module, reference.module)]
        log_prob = -((trajectory.children[:, column] - mean) ** 2 / (2 * std**2) + math.log(std) + math.log(2 * math.pi) / 2)
        log_ratio[:, column] = log_prob.flatten(1).mean(1) - trajectory.log_prob[:, column]
        kl[:, column] = (mean - mean_ref.detach()).square().flatten(1).mean(1) / (2 * std**2)
    mask = torch.zeros_like(log_ratio, dtype=torch.bool)
    mask[:, columns] = True
    return Coupled()(log_ratio, experience.advantage, mask, StepBatch(group_ids=trajectory.group, kl_reference=kl))[0]


@pytest.mark.parametrize(("make", "minibatches"), [(lambda: ToyModel(LinearNet()), 1), (table, 3)], ids=["one step", "a step per time"])
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_an_objective_that_couples_entries_gets_its_exact_gradient_in_micro_batches(make, minibatches, micro_batch):
    model, reference = make(), make()
    experience = make_experience(model, SAMPLERS["singular"])
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05)
    # In the table each time has parameters of its own, so steps taken one after the other do not see each other.
    parts = [[0, 1, 2]] if minibatches == 1 else [[0], [1], [2]]
    loss = sum(coupled_loss(model, reference, experience, columns) for columns in parts)
    expected = dict(zip(dict(model.module.named_parameters()), torch.autograd.grad(loss, model.trainable_parameters()), strict=True))
    found = gradient(make_learner(model, Coupled(), micro_batch=micro_batch, minibatches=minibatches), experience)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_scaled_down_to_the_largest_norm():
    free, bound = [
        gradient(make_learner(model, max_grad_norm=norm), make_experience(model, SAMPLERS["singular"]))["velocity"]
        for model, norm in ((table(), 1e9), (table(), 0.01))
    ]
    assert free.norm() > 0.015
    torch.testing.assert_close(bound, 0.01 * free / free.norm(), rtol=1e-3, atol=2e-7)


def test_metrics_average_micro_batches_by_their_entries_and_take_the_largest_deviation():
    model, sampler = ToyModel(LinearNet()), SAMPLERS["singular"]
    experience = make_experience(model, sampler)
    with torch.no_grad():
        model.module.time += 0.1
    many = make_learner(model, PolicyGradient(), micro_batch=4).update(experience)  # 6 parents: micro-batches of 4 and 2
    model = ToyModel(LinearNet())
    with torch.no_grad():
        model.module.time += 0.1
    one = make_learner(model, PolicyGradient(), micro_batch=6).update(experience)
    for name in ("loss", "ratio_mean", "ratio_max_dev", "grad_norm", "advantage_abs"):
        assert many[name] == pytest.approx(one[name], rel=1e-4), name
    assert one["advantage_abs"] == pytest.approx(float(experience.advantage.abs().mean()))
