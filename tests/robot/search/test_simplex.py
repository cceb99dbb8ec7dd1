"""The weight lattice."""

import math

import pytest

from robot.search.simplex import corner, corners, lattice, uniform, weight_label


@pytest.mark.parametrize(("members", "points"), [(2, 11), (3, 66), (4, 286)])
def test_a_lattice_of_tenths_has_as_many_points_as_the_paper_counts(members, points):
    assert len(set(lattice(members))) == points


@pytest.mark.parametrize(("members", "step"), [(2, 0.1), (3, 0.1), (4, 0.2), (5, 0.5), (2, 1 / 3)])
def test_every_point_is_on_the_simplex_and_a_whole_number_of_steps(members, step):
    for point in lattice(members, step):
        assert math.fsum(point) == pytest.approx(1, abs=1e-11)
        assert all(0 <= weight <= 1 and abs(weight / step - round(weight / step)) < 1e-9 for weight in point)


def test_two_members_are_ordered_by_the_first_weight_and_hold_the_corners():
    points = lattice(2)
    assert [point[0] for point in points] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert points[0] == corner(2, 1)
    assert points[-1] == corner(2, 0)


def test_a_lattice_is_symmetric_in_its_members():
    points = set(lattice(3))
    assert {(c, a, b) for a, b, c in points} == points
    assert set(corners(3)) <= points


@pytest.mark.parametrize("step", [0.3, 0, -0.1, 1.5, float("nan")])
def test_a_step_that_does_not_divide_one_is_refused(step):
    with pytest.raises(ValueError, match=f"must divide 1, got {step}"):
        lattice(2, step)


def test_one_member_is_refused():
    with pytest.raises(ValueError, match="two members or more, got 1"):
        lattice(1)


def test_labels_are_short():
    assert weight_label((0.3, 0.7)) == "0.3, 0.7"
    assert weight_label(uniform(3)) == "0.3333, 0.3333, 0.3333"
