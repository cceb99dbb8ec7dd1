"""Prop. 4.1 of GPC with the spec's numbers (G7), and the quadratic programme against a second route."""

import numpy as np
import pytest
from scipy.optimize import minimize

from robot.search.quadratic import best_pair_weight, error_gram, kkt_violation, least_error_weights, strictly_gains

BIASES = np.array([[0.3, 0.0], [-0.1, 0.2]])


def quadratic(gram):
    """``Q(w) = A w² + B w + C`` for weights ``(w, 1 − w)``."""
    return gram[0, 0] + gram[1, 1] - 2 * gram[0, 1], 2 * (gram[0, 1] - gram[1, 1]), gram[1, 1]


@pytest.mark.parametrize(("covariance", "weight", "error"), [(0.0, 0.515152, 0.0524242), (0.03, 0.518519, 0.0674074)])
def test_the_best_weight_and_its_error_are_those_of_proposition_41(covariance, weight, error):
    gram = error_gram(BIASES, np.array([[0.04, covariance], [covariance, 0.09]]))
    best = least_error_weights(gram)
    assert best[0] == pytest.approx(weight, abs=5e-7)
    assert best @ gram @ best == pytest.approx(error, abs=5e-8)
    assert best_pair_weight(gram) == pytest.approx(best[0], abs=1e-12)


def test_the_parabola_has_the_papers_coefficients_and_gaps():
    gram = error_gram(BIASES, np.diag([0.04, 0.09]))
    a, b, c = quadratic(gram)
    assert (a, b, c) == pytest.approx((0.33, -0.34, 0.14), abs=1e-12)
    assert (gram[1, 1], gram[0, 0]) == pytest.approx((0.14, 0.13), abs=1e-12)  # Q(0), Q(1)
    best = least_error_weights(gram) @ gram @ least_error_weights(gram)
    assert gram[1, 1] - best == pytest.approx(b**2 / (4 * a), abs=1e-12)
    assert gram[0, 0] - best == pytest.approx((2 * a + b) ** 2 / (4 * a), abs=1e-12)


def test_the_counter_example_leaves_the_simplex_and_is_clipped_to_the_better_member():
    """E‖η1‖² = 1, E‖η2‖² = 4, correlation .6: not perfectly correlated, and yet nothing to gain."""
    gram = np.array([[1.0, 0.6 * 2], [0.6 * 2, 4.0]])
    assert best_pair_weight(gram) == pytest.approx(1.0769, abs=5e-5)
    assert least_error_weights(gram).tolist() == [1, 0]
    assert not strictly_gains(gram)


@pytest.mark.parametrize(("rho", "gains"), [(-0.9, True), (0.0, True), (0.49, True), (0.51, False), (0.6, False), (0.99, False)])
def test_a_pair_gains_if_and_only_if_the_correlation_is_below_the_ratio_of_deviations(rho, gains):
    gram = np.array([[1.0, rho * 2], [rho * 2, 4.0]])  # sigma 1 and 2: the bound is 1/2
    weights = least_error_weights(gram)
    assert strictly_gains(gram) is gains
    assert bool(weights @ gram @ weights < 1 - 1e-9) is gains


@pytest.mark.parametrize("members", [2, 3, 4, 6])
def test_the_exact_solution_satisfies_kkt_and_no_numerical_one_is_better(members):
    generator = np.random.default_rng(members)
    for _ in range(20):
        errors = generator.standard_normal((members, 4)) * generator.uniform(0.3, 3, (members, 1))  # often singular: 4 dimensions
        gram = errors @ errors.T
        weights = least_error_weights(gram)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert kkt_violation(gram, weights) < 1e-7
        other = minimize(
            lambda w, g=gram: w @ g @ w,
            np.full(members, 1 / members),
            jac=lambda w, g=gram: 2 * g @ w,
            bounds=[(0, 1)] * members,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert weights @ gram @ weights <= other.fun + 1e-9


def test_kkt_tells_a_wrong_answer():
    gram = error_gram(BIASES, np.diag([0.04, 0.09]))
    assert kkt_violation(gram, np.array([1.0, 0.0])) > 0.1
    assert kkt_violation(gram, np.array([0.4, 0.6])) > 0.1


def test_members_with_the_same_errors_share_evenly():
    assert least_error_weights(np.ones((3, 3))) == pytest.approx([1 / 3] * 3)
    assert least_error_weights(np.zeros((2, 2))) == pytest.approx([0.5, 0.5])


def test_independent_errors_are_weighted_by_their_precision():
    assert least_error_weights(np.diag([1.0, 2.0, 4.0])) == pytest.approx(np.array([4, 2, 1]) / 7)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (np.ones((2, 3)), r"got shape \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "no negative eigenvalue"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
        (np.eye(13), "at most 12 members, got 13"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram, message):
    with pytest.raises(ValueError, match=message):
        least_error_weights(gram)


def test_equal_errors_have_no_best_pair_weight():
    with pytest.raises(ValueError, match="different errors"):
        best_pair_weight(np.ones((2, 2)))
