"""Places, weights and refusals of a composition."""

import pytest
import torch
from diffusers import DDPMScheduler
from laws import affine, compose, diffusion, drawn, gaussian, squaredcos

from flowrl.errors import NonFiniteError
from flowrl.flow import Condition, RectifiedFlow, VariancePreserving
from flowrl.testing import check_field
from robot import ActionSpec, Composer, CostGuidance, Member
from samplers import Euler, ODESampler, SDESampler, ShiftedGrid

HALF = {"weight": 0.5}


def constant(value, **more):
    """A policy sure of one action."""
    return Member(predict=lambda x, t, c: torch.as_tensor(value, dtype=x.dtype).expand_as(x), kind="sample", path=RectifiedFlow(), **more)


def test_the_tail_of_a_longer_chunk_is_the_longer_policy_alone_and_the_shorter_never_sees_it():
    seen = []
    short = Member(predict=lambda x, t, c: seen.append(x.shape[1]) or 0 * x, kind="sample", path=RectifiedFlow(), weight=0.5, horizon=8)
    long = constant(1.0, weight=0.5, horizon=16)
    actions = Composer([long, short]).sample((2, 16, 1), steps=5)
    torch.testing.assert_close(actions[:, :8], torch.full((2, 8, 1), 0.5))
    torch.testing.assert_close(actions[:, 8:], torch.ones(2, 8, 1))
    assert set(seen) == {8}
    alone = gaussian(0.3, 0.2)
    pair = Composer([gaussian(0.3, 0.2, weight=0.3), gaussian(-1, 0.2, weight=0.7, horizon=8)])
    tail = pair.sample((2, 16, 1), steps=5, generator=torch.Generator().manual_seed(0))[:, 8:]
    assert torch.equal(tail, Composer([alone]).sample((2, 16, 1), steps=5, generator=torch.Generator().manual_seed(0))[:, 8:])


def test_chunks_that_start_at_other_moments_meet_at_the_same_moment():
    actions = Composer([constant(0.0, weight=0.5, horizon=4), constant(1.0, weight=0.5, start=2, horizon=4)]).sample((1, 6, 1), steps=3)
    torch.testing.assert_close(actions[0, :, 0], torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0]))


def test_index_maps_put_each_dimension_where_it_belongs():
    both = constant([1.0, 2.0, 3.0], weight=0.5)
    part = constant([30.0, 10.0], weight=0.5, dims=(2, 0))
    actions = Composer([both, part]).sample((1, 1, 3), steps=3)
    torch.testing.assert_close(actions[0, 0], torch.tensor([5.5, 2.0, 16.5]))


def test_padding_of_a_policy_stays_with_it_and_is_not_returned():
    seen = []

    def predict(x, t, condition):
        seen.append(x.clone())
        return torch.tensor([1.0, 7.0, 9.0]).expand_as(x)

    padded = Member(predict=predict, kind="sample", path=RectifiedFlow(), weight=0.5, private_dims=2)
    actions = Composer([padded, constant(0.0, weight=0.5)]).sample((1, 2, 1), steps=200)
    torch.testing.assert_close(actions, torch.full((1, 2, 1), 0.5))
    torch.testing.assert_close(seen[-1][0, 0, 1:], torch.tensor([7.0, 9.0]), atol=0.1, rtol=0)


def test_a_padded_policy_without_weight_leaves_the_others_their_noise():
    """Common random numbers: at the vertices of a weight search the chunk starts from the same noise of the action."""
    padded = Member(predict=lambda x, t, c: 0 * x, kind="sample", path=RectifiedFlow(), private_dims=3, weight=0.0)
    draw = lambda *members: drawn(Composer(list(members)), rows=4, steps=5)  # noqa: E731
    seen = []
    spy = Member(predict=lambda x, t, c: seen.append(x.clone()) or 0 * x, kind="sample", path=RectifiedFlow(), private_dims=3)
    torch.testing.assert_close(draw(gaussian(0, 1), padded), draw(gaussian(0, 1)), atol=0, rtol=0)
    draw(spy)
    first = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0][..., :1], first, atol=0, rtol=0)


def test_weights_may_differ_between_dimensions_steps_and_noise_levels():
    gripper = torch.tensor([0.9, 0.2])
    by_dimension = Composer([constant([1.0, 1.0], weight=gripper), constant([0.0, 0.0], weight=1 - gripper)])
    torch.testing.assert_close(by_dimension.sample((1, 1, 2), steps=3)[0, 0], gripper)
    seen = []
    late = Composer([constant(1.0, weight=lambda t: seen.append(t) or float(t > 0.5)), constant(0.0, weight=lambda t: float(t <= 0.5))])
    torch.testing.assert_close(late.sample((1, 1, 1), steps=4), torch.zeros(1, 1, 1))
    assert max(seen) == 1.0
    assert min(seen) == 0.25


def test_weights_for_each_row_equal_one_composition_for_each_row():
    members = [gaussian(-1, 0.5, diffusion), gaussian(1, 0.5)]
    table = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]])
    generators = lambda: [torch.Generator().manual_seed(row) for row in range(3)]  # noqa: E731
    together = Composer(members, (0.5, 0.5)).compose((3, 2, 1), steps=20, generator=generators(), weights=table)
    for row in range(3):
        alone = Composer(members, table[row].tolist()).sample((1, 2, 1), steps=20, generator=[generators()[row]])
        torch.testing.assert_close(
            together.actions[row], alone[0], atol=2e-3 if row == 2 else 2e-5, rtol=0
        )  # the flow alone has a finer grid
    assert together.evaluations == {"epsilon policy": 40, "velocity policy": 40}


def test_the_observation_is_encoded_once_for_a_chunk():
    calls = []
    member = Member(
        predict=lambda x, t, c: c[:, None].expand_as(x), kind="sample", path=RectifiedFlow(), encode=lambda o: calls.append(1) or 2 * o
    )
    actions = Composer([member]).sample((2, 1, 1), steps=7, condition=torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(actions[:, 0, 0], torch.tensor([2.0, 6.0]))
    assert len(calls) == 1


def test_a_convex_composition_is_a_velocity_field():
    composer = compose(gaussian(-1, 0.5, diffusion, weight=0.3), gaussian(1, 0.5, weight=0.7))
    check_field(composer, torch.randn(4, 3, 2), Condition({"state": torch.zeros(4, 1)}), tolerance=1e-4)


def test_samplers_of_this_package_draw_from_a_composition():
    composer = compose(gaussian(-1, 0.5, diffusion, weight=0.3), gaussian(1, 0.5, weight=0.7))
    noise, condition = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0)), Condition(rows=4000)
    final = ODESampler(grid=ShiftedGrid(steps=100), solver=Euler()).sample(composer, noise, condition).samples
    assert final.mean() == pytest.approx(0.4, abs=0.03)
    assert final.std() == pytest.approx(0.5, abs=0.03)
    from flowrl.flow import FlowSDE

    sde = SDESampler(grid=ShiftedGrid(steps=20), dynamics=FlowSDE(noise_level=0.5), group_size=2)
    assert sde.sample(composer.bound(None, (4, 1, 1)), noise[:4], Condition(rows=2)).log_prob.isfinite().all()


def test_the_bound_field_takes_another_noise_level_for_each_row():
    composer = compose(gaussian(-1, 0.5, weight=0.3), gaussian(1, 0.8, weight=0.7))
    x, t = torch.randn(3, 2, 1), torch.tensor([0.9, 0.3, 0.9])
    field = composer.bound(None, (3, 2, 1))
    for row in range(3):
        torch.testing.assert_close(field(x, t)[row], composer.bound(None, (1, 2, 1))(x[row : row + 1], t[row])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [(0.5, 0.6), (0.2, 0.2), (1.0, 1.0)])
def test_weights_that_do_not_sum_to_one_are_refused(weights):
    with pytest.raises(ValueError, match="must sum to one"):
        compose(gaussian(0, 1), gaussian(1, 1)) if weights == (1.0, 1.0) else Composer([gaussian(0, 1), gaussian(1, 1)], weights)


def test_a_negative_weight_is_refused_and_guidance_named():
    with pytest.raises(ValueError, match=r"must be >= 0 and finite, got .*guidance"):
        Composer([gaussian(0, 1), gaussian(1, 1)], (-0.5, 1.5))


def test_weights_that_stop_summing_to_one_at_some_noise_level_are_refused():
    composer = compose(gaussian(0, 1, weight=lambda t: 0.5 if t > 0.5 else 0.7), gaussian(1, 1, weight=0.5))
    with pytest.raises(ValueError, match="must sum to one"):
        composer.sample((1, 1, 1), steps=4)


def test_weights_of_rows_are_checked():
    composer = compose(gaussian(0, 1, **HALF), gaussian(1, 1, **HALF))
    with pytest.raises(ValueError, match=r"\(batch, member\) = \(2, 2\)"):
        composer.sample((2, 1, 1), weights=torch.ones(2))
    with pytest.raises(ValueError, match="must sum to one"):
        composer.sample((2, 1, 1), weights=torch.ones(2, 2))


SPEC = ActionSpec(names=("x", "y"), control_rate_hz=20.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ActionSpec(names=("x", "z"), control_rate_hz=20.0), "dimension 1 is 'y' for first and 'z' for second"),
        (ActionSpec(names=("x", "y"), control_rate_hz=10.0), "20.0 Hz and second at 10.0 Hz"),
        (ActionSpec(names=("x",), control_rate_hz=20.0), "differ in their number of dimensions"),
        (ActionSpec(names=("x", "y"), control_rate_hz=20.0, rotation="axis_angle"), "as axis_angle"),
    ],
)
def test_actions_that_do_not_mean_the_same_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        compose(constant(0.0, weight=0.5, name="first", action=SPEC), constant(0.0, weight=0.5, name="second", action=other))


def test_axis_angles_alone_are_nobodys_problem():
    spec = ActionSpec(names=("x", "y"), control_rate_hz=20.0, rotation="axis_angle")
    assert compose(constant(0.0, action=spec)).sample((1, 1, 2), steps=2).shape == (1, 1, 2)


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
def test_a_schedule_that_does_not_end_at_pure_noise_is_refused_or_warned_of(schedule):
    alphas = DDPMScheduler(num_train_timesteps=100, beta_schedule=schedule).alphas_cumprod
    settings = {"predict": lambda x, t, c: x, "kind": "epsilon", "path": VariancePreserving(alphas)}
    with pytest.raises(ValueError, match=r"ends at alpha_bar = 0\.(48|36)\d, .* accept_terminal_snr=True"):
        Member(**settings)
    with pytest.warns(UserWarning, match="ends at alpha_bar"):
        Member(**settings, accept_terminal_snr=True)


def test_squaredcos_ends_at_pure_noise():
    assert squaredcos()[-1] < 1e-6
    Member(predict=lambda x, t, c: x, kind="epsilon", path=VariancePreserving(squaredcos()))


def test_a_schedule_that_was_accepted_starts_at_its_own_last_timestep():
    """Scaled-linear with 100 timesteps, N(0.7, 0.05²): sampling from N(0, I) is biased to mean 0.666 and std 0.070 (specification 1.3)."""
    alphas = DDPMScheduler(num_train_timesteps=100, beta_schedule="scaled_linear").alphas_cumprod
    with pytest.warns(UserWarning, match="ends at alpha_bar"):
        member = gaussian(0.7, 0.05, diffusion, alphas=alphas, accept_terminal_snr=True)
    assert affine(compose(member), steps=100) == pytest.approx((0.666, 0.070), abs=6e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "noise"}, "unknown prediction kind 'noise'"),
        ({"path": "flow"}, "has no score to compose"),
        ({"base_noise": "uniform"}, "starts from uniform noise"),
        ({"scale": 0.0}, "scales > 0"),
        ({"scale": torch.tensor([1.0, 0.0])}, "never moves in the data"),
        ({"every": 0}, "every >= 1"),
        ({"clip": -1.0}, "clip of velocity policy must be > 0"),
        ({"dims": (0, 0)}, "different dimensions"),
    ],
)
def test_a_member_that_cannot_be_composed_is_refused_with_the_reason(settings, message):
    with pytest.raises(ValueError, match=message):
        Member(**({"predict": lambda x, t, c: x, "kind": "velocity", "path": RectifiedFlow()} | settings))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Composer([]), "at least one member"),
        (lambda: Composer([gaussian(0, 1)], (0.5, 0.5)), "2 weights for 1 members"),
        (lambda: compose(gaussian(0, 1), operator="convx"), "did you mean 'convex'"),
        (lambda: compose(gaussian(0, 1, every=2), operator="fkc"), "'fkc' resamples .* cannot be reused with every=2; set every to 1"),
        (lambda: compose(gaussian(0, 1)).sample((2, 1, 1), sampler="od"), "did you mean 'ode'"),
        (lambda: compose(gaussian(0, 1)).sample((2, 1)), "has shape"),
        (lambda: compose(gaussian(0, 1)).sample((2, 1, 1), steps=0), "steps must be at least 1"),
        (lambda: compose(gaussian(0, 1, horizon=4)).sample((2, 2, 1)), "covers steps 0 to 3"),
        (lambda: compose(gaussian(0, 1, horizon=4)).sample((2, 8, 1)), "no member with weight covers step 4"),
        (lambda: compose(gaussian(0, 1), operator="average")(torch.zeros(1, 1, 1), 0.5, None), "more than a velocity"),
        (
            lambda: compose(gaussian(0, 1), operator="average", guidance=(CostGuidance(cost=lambda a: a.sum((1, 2)), scale=1.0),)),
            "knows no guidance",
        ),
        (lambda: compose(gaussian(0, 1, weight=lambda t: 1.0), operator="average"), "no weights that depend on the noise level"),
    ],
)
def test_wrong_use_of_a_composer_is_an_error_that_says_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_prediction_that_is_not_finite_names_its_member():
    bad = Member(predict=lambda x, t, c: x * float("nan"), kind="velocity", path=RectifiedFlow(), weight=0.5, name="camera policy")
    with pytest.raises(NonFiniteError, match="camera policy predicted"):
        Composer([gaussian(0, 1, weight=0.5, name="innocent"), bad]).sample((1, 1, 1), steps=4)
    with pytest.raises(NonFiniteError, match=r"^camera policy predicted"):
        Composer([gaussian(0, 1, weight=0.5, name="innocent"), bad]).sample((1, 1, 1), steps=4)


def test_a_prediction_of_another_shape_names_its_member():
    with pytest.raises(ValueError, match="velocity policy was asked about"):
        compose(Member(predict=lambda x, t, c: x[:, :1], kind="velocity", path=RectifiedFlow())).sample((1, 2, 1))


def test_normalisers_whose_ratio_differs_between_dimensions_are_warned_of():
    first = constant([0.0, 0.0], scale=torch.tensor([1.0, 1.0]), weight=0.5, name="first")
    second = constant([0.0, 0.0], scale=torch.tensor([1.0, 4.0]), weight=0.5, name="second")
    with pytest.warns(UserWarning, match="normaliser mismatch: the scales of .*second by a factor 1.41"):
        composer = Composer([first, second])
    assert composer.mismatch() == pytest.approx({"first": 0.3466, "second": 0.3466}, abs=1e-3)  # each log(4)/4 from the geometric mean


def test_normalisers_that_differ_by_one_factor_are_exact():
    composer = compose(
        constant([0.0, 0.0], scale=torch.tensor([1.0, 2.0]), **HALF), constant([0.0, 0.0], scale=torch.tensor([3.0, 6.0]), **HALF)
    )
    assert max(composer.mismatch().values()) == pytest.approx(0, abs=1e-6)


def test_averaging_takes_weights_and_places_into_account():
    composer = Composer([constant(1.0, weight=0.25, horizon=4), constant(0.0, weight=0.75, horizon=2)], operator="average")
    actions = composer.sample((1, 4, 1), steps=2)
    torch.testing.assert_close(actions[0, :, 0], torch.tensor([0.25, 0.25, 1.0, 1.0]))


def test_more_steps_than_timesteps_take_every_timestep():
    assert drawn(compose(gaussian(0, 1, diffusion)), rows=4, steps=500).shape == (4,)


@pytest.mark.parametrize("operator", ["convex", "average"])
def test_members_of_one_name_are_counted_apart(operator):
    drawn = Composer([gaussian(0, 1, weight=0.5, name="twin"), gaussian(0, 1, weight=0.5, name="twin")], operator=operator).compose(
        (2, 1, 1), steps=3
    )
    assert drawn.evaluations == {"twin 1": 6, "twin 2": 6}
    assert set(drawn.latency_s) == {"twin 1", "twin 2"}
    assert (drawn.disagreement is None) == (operator == "average")


def test_the_time_of_the_encoder_counts_too():
    import time

    slow = Member(predict=lambda x, t, c: 0 * x, kind="sample", path=RectifiedFlow(), name="slow", encode=lambda o: time.sleep(0.05) or o)
    assert Composer([slow]).compose((1, 1, 1), steps=1, condition=torch.zeros(1, 1)).latency_s["slow"] >= 0.05


def test_a_normaliser_of_another_size_than_the_chunk_is_refused():
    composer = compose(constant(0.0, scale=torch.ones(4), name="arm"))
    with pytest.raises(ValueError, match="the normaliser of arm has 4 dimensions, but it acts on 7 of the chunk's 7"):
        composer.sample((1, 2, 7))


def test_a_prediction_that_is_no_tensor_names_its_member():
    with pytest.raises(ValueError, match="answered a tuple; predict must return a tensor"):
        compose(Member(predict=lambda x, t, c: (x,), kind="velocity", path=RectifiedFlow())).sample((1, 2, 1))
