"""The public checkers accept what keeps its contract and name what breaks it."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from flowrl.errors import FlowrlError
from flowrl.flow import Condition, FlowSDE, Trajectory
from flowrl.rl import PolicyGradient, PPOClip, RewardBatch
from flowrl.shapes import randn, seeded_generator
from flowrl.testing import ContractError, GaussianField, check_field, check_objective, check_reward, check_sampler

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LABELS = Condition({"label": torch.tensor([0.0, 1.0, 2.0, 3.0])})
PICTURES = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "bb", "ccc", "dddd"]


# ------------------------------------------------------------------------------------------------------ GaussianField


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
def test_gaussian_field_is_the_regression_of_velocity_on_state(t):
    """A second route: least squares of noise − data on x_t over many draws finds the slope and the intercept of the closed form."""
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(400000, generator=generator, dtype=torch.float64) for _ in range(2))
    data = 2 + 0.5 * data
    x_t = (1 - t) * data + t * noise
    design = torch.stack([x_t, torch.ones_like(x_t)], dim=1)
    slope, intercept = torch.linalg.lstsq(design, (noise - data)[:, None]).solution.flatten().tolist()
    at_zero, at_one = GaussianField(mean=2.0, std=0.5)(torch.tensor([[0.0], [1.0]], dtype=torch.float64), t).flatten().tolist()
    assert at_one - at_zero == pytest.approx(slope, abs=0.01)
    assert at_zero == pytest.approx(intercept, abs=0.01)


def test_gaussian_field_at_the_ends_knows_one_of_them():
    gaussian = GaussianField(mean=2.0, std=0.5)
    torch.testing.assert_close(gaussian(X, 1.0), X - 2)  # all noise: the data are anyone's guess
    torch.testing.assert_close(gaussian(X, 0.0), -X)  # all data: the noise is


def test_gaussian_field_takes_batch_and_token_times_and_means_per_entry():
    x, mean = torch.randn(2, 3, 4), torch.randn(4)
    gaussian = GaussianField(mean=mean, std=torch.tensor([0.5, 1.0, 1.5, 2.0]))
    t = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.4, 0.6]])
    together = gaussian(x, t)
    for row, token, entry in ((0, 0, 1), (1, 2, 3), (0, 2, 0)):
        alone = GaussianField(mean=mean[entry].item(), std=0.5 * (entry + 1))(x[row, token, entry].reshape(1, 1), t[row, token].item())
        torch.testing.assert_close(together[row, token, entry], alone.squeeze())


def test_gaussian_field_returns_float32_under_float64_times():
    assert GaussianField(mean=1.0)(X, torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32


def test_gaussian_field_refuses_a_std_that_is_not_positive():
    with pytest.raises(ValueError, match=r"std must be > 0, got 0\.0"):
        GaussianField(std=0.0)


# -------------------------------------------------------------------------------------------------------- check_field


def good_field(x, t, condition):
    return GaussianField(mean=1.0, std=0.5)(x, t) + condition.tensors["label"][:, None]


def broken_fields():
    calls = iter(range(1000))
    return {
        "returns the state's shape": lambda x, t, c: good_field(x, t, c)[:, :1],
        "returns float32": lambda x, t, c: good_field(x, t, c).double(),
        "velocities are finite": lambda x, t, c: good_field(x, t, c) / torch.zeros(()),
        "two calls with the same arguments agree": lambda x, t, c: good_field(x, t, c) + next(calls),
        "permuting rows, times and conditions permutes": lambda x, t, c: good_field(x, t, c) + torch.arange(len(x))[:, None],
        "does not depend on the other rows": lambda x, t, c: good_field(x, t, c) - x.mean(0),
        "a scalar time equals a": lambda x, t, c: good_field(x, t if torch.as_tensor(t).ndim else t / 2, c),
        "not modified": lambda x, t, c: x.mul_(0.5) * 0,
    }


def test_check_field_accepts_a_good_field():
    check_field(good_field, X, LABELS)
    check_field(GaussianField(mean=2.0, std=0.5), X, LABELS)


def test_check_field_asks_a_field_that_starts_below_1_for_nothing_above():
    asked = []

    def field(x, t, condition):
        asked.append(float(torch.as_tensor(t).max()))
        return good_field(x, t, condition)

    check_field(field, X, LABELS, start=0.9)
    assert max(asked) == pytest.approx(0.9)
    check_field(field, X, LABELS)
    assert max(asked) == 1


@pytest.mark.parametrize("clause", broken_fields())
def test_check_field_names_the_broken_clause(clause):
    with pytest.raises(ContractError, match=clause) as raised:
        check_field(broken_fields()[clause], X.clone(), LABELS)
    assert isinstance(raised.value, FlowrlError)
    assert isinstance(raised.value, ValueError)


def test_check_field_lists_every_broken_clause():
    with pytest.raises(ContractError) as raised:
        check_field(lambda x, t, c: torch.randn(len(x), 3).double(), X, LABELS)
    assert str(raised.value).count("\n- ") >= 4


def test_check_field_wants_two_rows_and_as_many_conditions():
    with pytest.raises(ValueError, match="two rows or more and one condition row a state, got 1 and 1"):
        check_field(good_field, X[:1], LABELS[[0]])
    with pytest.raises(ValueError, match="got 4 and 2"):
        check_field(good_field, X, LABELS[[0, 1]])


# ------------------------------------------------------------------------------------------------------- check_reward


class GoodReward:
    weights = {"brightness": 1.0, "length": 0.5}  # noqa: RUF012

    def __call__(self, samples, prompts):
        return RewardBatch({"brightness": samples.mean((1, 2, 3)), "length": torch.tensor([float(len(p)) for p in prompts])})


def twisted(change):
    """A good reward whose brightness goes through ``change(brightness, samples)``."""

    class Twisted(GoodReward):
        def __call__(self, samples, prompts):
            parts = dict(super().__call__(samples, prompts).parts)
            return RewardBatch(parts | {"brightness": change(parts["brightness"], samples)})

    return Twisted()


def broken_rewards():
    calls = iter(range(1000))
    renamed = GoodReward()
    renamed.weights = {"brightness": 1.0, "size": 1.0}
    weightless = GoodReward()
    weightless.weights = {"brightness": float("nan"), "length": 1.0}
    return {
        "have the names of the weights": renamed,
        "weights are finite": weightless,
        "part 'brightness' is floating point": twisted(lambda b, s: b.long()),
        "part 'brightness' is finite": twisted(lambda b, s: b.log() * torch.inf),
        "is the same when scored again": twisted(lambda b, s: b + next(calls)),
        "permuting samples and prompts permutes part 'brightness'": twisted(lambda b, s: b + torch.arange(len(b))),
        "does not depend on the rest of the batch": twisted(lambda b, s: b - b.mean()),
        "the samples given are not modified": twisted(lambda b, s: s.mul_(0).mean((1, 2, 3))),
    }


def test_check_reward_accepts_a_good_reward():
    check_reward(GoodReward(), PICTURES, PROMPTS)


@pytest.mark.parametrize("clause", broken_rewards())
def test_check_reward_names_the_broken_clause(clause):
    with pytest.raises(ContractError, match=clause):
        check_reward(broken_rewards()[clause], PICTURES.clone(), PROMPTS)


def test_check_reward_sees_a_reward_that_ignores_which_prompt_is_whose():
    class Shuffled(GoodReward):
        def __call__(self, samples, prompts):
            return super().__call__(samples, sorted(prompts))

    with pytest.raises(ContractError, match="permuting samples and prompts permutes part 'length'"):
        check_reward(Shuffled(), PICTURES, PROMPTS)


def test_check_reward_says_what_to_return_instead_of_a_dict():
    class Bare:
        @property
        def weights(self):
            return {"bright": 1.0}

        def __call__(self, samples, prompts):
            return {"bright": samples.mean((1, 2, 3))}

    with pytest.raises(ContractError, match=r"returned a dict; return flowrl.rl.RewardBatch\(\{'name': scores of shape \(4,\)\}\)"):
        check_reward(Bare(), PICTURES, PROMPTS)


def test_check_reward_wants_one_prompt_a_sample():
    with pytest.raises(ValueError, match="two rows or more and one prompt a sample, got 4 and 3"):
        check_reward(GoodReward(), PICTURES, PROMPTS[:3])


# ------------------------------------------------------------------------------------------------------ check_sampler


@dataclass(frozen=True, kw_only=True)
class TwoSteps:
    """A correct sampler, written for this test: two stochastic steps 1 → 0.6 → 0.2, then one Euler step; noise of its own for each row."""

    dynamics: FlowSDE = field(default_factory=lambda: FlowSDE(noise_level=0.7))
    group_size: int = 3
    dtype: torch.dtype = torch.float32

    def noise_rows(self):
        return self.group_size

    def for_update(self, update, seed):
        return self

    def evaluations(self):
        return 3 * self.group_size

    def sample(self, velocity, noise, condition, generator=None):
        rows = condition.repeat(self.group_size)
        x, parents, children, scores = noise.to(self.dtype), [], [], []
        with torch.no_grad():
            for t, s in ((1.0, 0.6), (0.6, 0.2)):
                step = self.dynamics.transition(velocity(x.float(), t, rows), x, t, s)
                parents.append(x)
                x = step.sample(generator).to(self.dtype)
                children.append(x)
                scores.append(step.log_prob(x))
            final = x - 0.2 * velocity(x.float(), 0.2, rows)
        count, group = len(noise), torch.arange(len(condition)).repeat_interleave(self.group_size)
        return Trajectory(
            samples=final[:, None, None],
            parents=torch.cat(parents),
            t=torch.tensor([1.0, 0.6]).repeat_interleave(count),
            s=torch.tensor([0.6, 0.2]).repeat_interleave(count),
            parent_condition=group.repeat(2),
            children=torch.stack(children, dim=1),
            parent_index=torch.stack([torch.arange(count), torch.arange(count, 2 * count)], dim=1),
            log_prob=torch.stack(scores, dim=1),
            group=group,
            network_evaluations=3 * count,
        )


def changed(**changes):
    """The sampler above whose trajectory goes through ``changes``: name to function of the trajectory."""

    @dataclass(frozen=True, kw_only=True)
    class Changed(TwoSteps):
        def sample(self, velocity, noise, condition, generator=None):
            drawn = super().sample(velocity, noise, condition, generator)
            return replace(drawn, **{name: change(drawn) for name, change in changes.items()})

    return Changed()


@dataclass(frozen=True, kw_only=True)
class MixesNoise(TwoSteps):
    def sample(self, velocity, noise, condition, generator=None):
        return super().sample(velocity, noise, condition, seeded_generator(len(condition)))


@dataclass(frozen=True, kw_only=True)
class KeepsGraph(TwoSteps):
    def sample(self, velocity, noise, condition, generator=None):
        drawn = super().sample(velocity, noise, condition, generator)
        return replace(drawn, samples=drawn.samples + 0 * velocity(noise, 1.0, condition.repeat(3))[:, None, None])


@dataclass(frozen=True, kw_only=True)
class OverwritesNoise(TwoSteps):
    def sample(self, velocity, noise, condition, generator=None):
        drawn = super().sample(velocity, noise.clone(), condition, generator)
        noise.zero_()
        return drawn


@dataclass(frozen=True, kw_only=True)
class Miscounts(TwoSteps):
    def evaluations(self):
        return 8


BROKEN_SAMPLERS = {
    "children has the shape": changed(children=lambda d: d.children[:-1]),
    "samples has the shape .* not \\(6,\\)": changed(samples=lambda d: d.samples[:, 0, 0, 0]),
    "log_prob has the shape .* not \\(6, 2\\)": changed(children=lambda d: d.children[:, 0, 0]),
    "samples has the shape": changed(samples=lambda d: d.samples[:, 0]),
    "log_prob has the shape": changed(log_prob=lambda d: d.log_prob.sum(1)),
    "log_prob is finite": changed(log_prob=lambda d: d.log_prob * torch.nan),
    "log_prob is float32": changed(log_prob=lambda d: d.log_prob.double()),
    "parent_index is integer": changed(parent_index=lambda d: d.parent_index.float()),
    "samples have one view, or one a stochastic step": changed(samples=lambda d: d.samples.expand(-1, 3, -1, -1)),
    "samples keeps no autograd graph": KeepsGraph(),
    "group is prompt-major": changed(group=lambda d: d.group.flip(0)),
    "0 <= s < t <= 1": changed(t=lambda d: d.s, s=lambda d: d.t),
    "parent_index and parent_condition are in range": changed(parent_index=lambda d: d.parent_index + 1),
    "belongs to the child's own prompt": changed(parent_index=lambda d: d.parent_index.flip(0)),
    "every parent has a child": changed(parent_index=lambda d: d.parent_index[:, :1].expand(-1, 2)),
    "log_prob is that of the stored children": changed(children=lambda d: d.children.bfloat16().float()),
    "from the stored parents": changed(parents=lambda d: d.parents.roll(1, 0)),
    "do not depend on the other prompts": MixesNoise(),
    "is what was evaluated, 18": changed(network_evaluations=lambda d: 17),
    "field's own.* = 16 is what was evaluated, 18": Miscounts(),
    "the noise given is not modified": OverwritesNoise(),
}
TWO_PROMPTS = Condition({"label": torch.tensor([0.0, 1.0])})


def start():
    return randn((6, 3), seeded_generator(9), device="cpu")


def test_check_sampler_accepts_a_good_sampler():
    check_sampler(TwoSteps(), good_field, start(), TWO_PROMPTS)


@pytest.mark.parametrize("clause", BROKEN_SAMPLERS)
def test_check_sampler_names_the_broken_clause(clause):
    with pytest.raises(ContractError, match=clause):
        check_sampler(BROKEN_SAMPLERS[clause], good_field, start(), TWO_PROMPTS)


def test_check_sampler_takes_the_evaluations_of_a_dearer_solver():
    check_sampler(Miscounts(), good_field, start(), TWO_PROMPTS, evaluations=9)
    with pytest.raises(ContractError, match="= 20 is what was evaluated, 18"):
        check_sampler(TwoSteps(), good_field, start(), TWO_PROMPTS, evaluations=10)


def test_check_sampler_scores_states_kept_in_bfloat16_as_the_trainer_does():
    """Rounded first, then scored; and the field sees float32."""

    def float32_only(x, t, condition):
        assert x.dtype == torch.float32
        return good_field(x, t, condition)

    check_sampler(TwoSteps(dtype=torch.bfloat16), float32_only, start(), TWO_PROMPTS)


def test_check_sampler_wants_noise_for_every_prompt():
    with pytest.raises(ValueError, match=r"two rows or more and noise_rows\(\) rows of noise a prompt, got 2 and 1"):
        check_sampler(TwoSteps(), good_field, start()[:3], TWO_PROMPTS)


# ---------------------------------------------------------------------------------------------------- check_objective


class Twisted(PPOClip):
    """PPO whose inputs or outputs go through a mistake."""

    def __init__(self, before=lambda *x: x, after=lambda loss, metrics, mask: (loss, metrics)):
        super().__init__(clip=0.2)
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "after", after)

    def __call__(self, log_ratio, advantage, mask, context=None):
        return self.after(*super().__call__(*self.before(log_ratio, advantage, mask), context), mask)


class MultipliesByTheMask(PolicyGradient):
    def __call__(self, log_ratio, advantage, mask, context=None):
        if not mask.any():
            raise ValueError("empty")
        per_step = advantage if advantage.ndim == 2 else advantage[:, None]
        return -(log_ratio * per_step * mask).sum() / mask.sum(), {}


class CouplesTheStepsOfARow(PolicyGradient):
    """Like a sequence ratio: right in whole rows, wrong in single entries."""

    def __call__(self, log_ratio, advantage, mask, context=None):
        kept = torch.where(mask, log_ratio, 0.0)
        loss, metrics = super().__call__(log_ratio, advantage, mask, context)
        return loss + kept.sum(1).square().sum() / mask.sum(), metrics


class Forgets(PPOClip):
    def state_dict(self):
        return {"drawn": torch.rand(()).item()}

    def load_state_dict(self, state):
        pass


BROKEN_OBJECTIVES = {
    "the gradient at ratio 1 is −A": Twisted(before=lambda r, a, m: (r, -a, m)),
    "number of kept entries": Twisted(after=lambda loss, metrics, mask: (loss * mask.sum() / mask.numel(), metrics)),
    "masked entries get exactly zero gradient": Twisted(before=lambda r, a, m: (r, a, m | m.any())),
    "NaN in all that is masked": MultipliesByTheMask(),
    r"metrics are finite scalars without a graph, unlike \['extra'\]": Twisted(
        after=lambda loss, metrics, mask: (loss, metrics | {"extra": loss})
    ),
    "a mask that keeps nothing is refused": Twisted(before=lambda r, a, m: (r, a, m if m.any() else ~m)),
    "a separable loss is the sum of its parts'": Twisted(after=lambda loss, metrics, mask: (loss + loss.detach() ** 2, metrics)),
    "wherever entries stand": CouplesTheStepsOfARow(),
    "state_dict survives": Forgets(),
}


def test_check_objective_accepts_every_setting_of_ppo():
    check_objective(PPOClip())
    check_objective(PPOClip(clip_low=0.1, clip_high=0.3, kl_weight=0.5))


def test_check_objective_knows_a_documented_scale():
    check_objective(Twisted(before=lambda r, a, m: (r, 2 * a, m)), scale=2.0)


@pytest.mark.parametrize("clause", BROKEN_OBJECTIVES)
def test_check_objective_names_the_broken_clause(clause):
    with pytest.raises(ContractError, match=clause):
        check_objective(BROKEN_OBJECTIVES[clause])
