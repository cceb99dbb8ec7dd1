import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers import granular_indices, singular_evaluations
from samplers.granular import tail_levels, tail_lists

TABLES = json.loads((Path(__file__).parents[1] / "goldens" / "sde_steps.json").read_text())["granular_schedules"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: "T{T} k{sde_index} stride{stride}".format(**table))
def test_official_tails_are_those_of_the_golden_tables(table):
    assert granular_indices(table["T"], table["sde_index"], table["stride"]) == table["velocity_eval_indices"]


@pytest.mark.parametrize(
    ("sde_index", "stride", "expected"),
    [
        # counted from the clean end of 16 steps: S = {1, 3, 5, …} is our 15, 13, 11, …; the tail starts at k + 1 in any case
        (0, 2, [1, 3, 5, 7, 9, 11, 13, 15]),
        (1, 2, [2, 3, 5, 7, 9, 11, 13, 15]),
        # S = {1, 4, 7, …} is our 15, 12, 9, …
        (0, 3, [1, 3, 6, 9, 12, 15]),
        (4, 3, [5, 6, 9, 12, 15]),
        (5, 3, [6, 9, 12, 15]),
        (13, 2, [14, 15]),
        (14, 3, [15]),
        (15, 2, []),
    ],
)
def test_paper_tails_count_their_stride_from_the_clean_end(sde_index, stride, expected):
    assert granular_indices(16, sde_index, stride, "paper") == expected


@pytest.mark.parametrize("anchoring", ["official", "paper"])
@pytest.mark.parametrize("sde_index", range(10))
def test_stride_one_visits_every_state_after_the_stochastic_step(sde_index, anchoring):
    assert granular_indices(10, sde_index, 1, anchoring) == list(range(sde_index + 1, 10))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9))
def test_an_official_tail_takes_as_many_evaluations_as_the_specification_counts(steps, sde_index, stride):
    sde_index %= steps
    assert len(granular_indices(steps, sde_index, stride)) == math.ceil((steps - 1 - sde_index) / stride)


@pytest.mark.parametrize(
    ("steps", "indices", "group", "strides", "minimum"),
    [
        (16, range(8), 12, (1,), 1112),
        (16, range(8), 12, (1, 2), 1496),
        (16, range(8), 12, (1, 3), 1316),
        (16, range(8), 12, (1, 2, 3), 1700),
        (16, range(4), 12, (1, 2), 892),
        (10, range(5), 12, (1, 2), 533),
        (10, range(5), 8, (1,), 285),
        (16, (0, 2, 4, 6), 12, (1,), 583),
    ],
)
def test_evaluations_are_the_lossless_minimum_of_the_specification(steps, indices, group, strides, minimum):
    assert singular_evaluations(steps=steps, sde_indices=indices, group_size=group, strides=strides) == minimum


CASES = {
    "steps": st.integers(2, 24),
    "columns": st.sets(st.integers(0, 23), min_size=1, max_size=6),
    "strides": st.sets(st.integers(1, 7), min_size=1, max_size=4),
    "group": st.integers(2, 5),
}


@given(**CASES)
def test_evaluations_are_the_closed_form_where_every_tail_takes_two_or_more(steps, columns, strides, group):
    indices = sorted({column % steps for column in columns})
    counts = {k: [math.ceil((steps - 1 - k) / stride) for stride in strides] for k in indices}
    if min(min(row) for row in counts.values()) < 2:
        return
    closed = max(indices) + 1 + group * sum(sum(row) - 2 * (len(strides) - 1) for row in counts.values())
    assert singular_evaluations(steps, indices, group, strides) == closed


@pytest.mark.parametrize("anchoring", ["official", "paper"])
@given(**CASES)
def test_the_merged_tails_take_each_tail_along_its_own_list_and_no_state_twice(anchoring, steps, columns, strides, group):
    indices = sorted({column % steps for column in columns})
    lists = tail_lists(steps, indices, sorted(strides), anchoring)
    levels = tail_levels(lists, steps)
    starts = zip(levels[0].columns, levels[0].indices, strict=True) if levels else ()
    paths = {at: [start] for at, start in enumerate(starts)}
    finished = {key: [] for key, path in lists.items() if not path}
    for depth, level in enumerate(levels):
        assert [path[-1] for path in paths.values()] == list(zip(level.columns, level.indices, strict=True))
        onward = [edge for edge in level.edges if not edge.finishes]
        assert list(level.edges[: len(onward)]) == onward
        for edge in level.edges:
            for key in edge.finishes:
                assert edge.target == steps
                assert key not in finished
                finished[key] = [index for _, index in paths[edge.source]]
        paths = {at: [*paths[edge.source], (paths[edge.source][0][0], edge.target)] for at, edge in enumerate(onward)}
        assert len({tuple(path) for path in paths.values()}) == len(paths), f"a state is evaluated twice at depth {depth + 1}"
    assert finished == lists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sde_index": 16}, r"sde_index must lie in 0 … 15 \(steps = 16\), got 16"),
        ({"sde_index": -1}, "got -1"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"anchoring": "oficial"}, "did you mean 'official'"),
    ],
)
def test_a_tail_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        granular_indices(**({"steps": 16, "sde_index": 0, "stride": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sde_indices": ()}, "one or more different steps"),
        ({"sde_indices": (1, 1)}, "one or more different steps"),
        ({"sde_indices": (16,)}, "got 16"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"strides": ()}, "strides must be one or more different numbers"),
        ({"strides": (2, 2)}, "strides must be one or more different numbers"),
    ],
)
def test_evaluations_of_a_sampler_that_cannot_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        singular_evaluations(**({"steps": 16, "sde_indices": (0,), "group_size": 2, "strides": (1, 2)} | arguments))
