"""GenEval's rules on detections made by hand."""

import pytest

from rewards.object_checks import Detection, Verdict, judge, kept, relations, requirements


def at(x, y, name="apple", *, size=10.0, score=0.9):
    return Detection(name=name, score=score, box=(x - size / 2, y - size / 2, x + size / 2, y + size / 2))


def found(*detections):
    return kept(detections, threshold=0.3, overlap=0.5)


def no_colours(name, detections):
    raise AssertionError("no colour is asked for")


def entry(name, count=1, **others):
    return {"class": name, "count": count, **others}


RIGHT_OF_A_BENCH = {"include": [entry("bench"), entry("cat", position=["right of", 0])]}


@pytest.mark.parametrize(
    ("there", "score", "correct"),
    [(0, 0.0, False), (1, 1 / 3, False), (2, 2 / 3, False), (3, 1.0, True), (4, 2 / 3, False), (7, -1 / 3, False)],
)
def test_counting_loses_a_share_for_each_object_too_few_or_too_many(there, score, correct):
    facts = {"tag": "counting", "include": [entry("apple", 3)], "exclude": [entry("apple", 4)]}
    verdict = judge(found(*(at(20 * n, 0) for n in range(there))), facts, no_colours)
    assert (verdict.score, verdict.correct) == (pytest.approx(score), correct)


def test_without_an_exclude_more_objects_are_correct_and_yet_cost_reward():
    verdict = judge(found(at(0, 0), at(50, 0)), {"include": [entry("apple")]}, no_colours)
    assert verdict == Verdict(score=0.0, correct=True)


def test_two_objects_share_the_reward():
    verdict = judge(found(at(0, 0, "cat")), {"include": [entry("cat"), entry("dog")]}, no_colours)
    assert verdict == Verdict(score=0.5, correct=False, reasons=("0 dog, 1 wanted",))


@pytest.mark.parametrize(
    ("colours", "score", "correct"),
    [(["red", "red"], 1.0, True), (["red", "blue"], 0.75, False), (["blue", "green"], 0.5, False)],
)
def test_colours_count_object_by_object(colours, score, correct):
    asked = []

    def colours_of(name, detections):
        asked.append((name, len(detections)))
        return colours

    verdict = judge(found(at(0, 0), at(50, 0)), {"include": [entry("apple", 2, color="red")]}, colours_of)
    assert (verdict.score, verdict.correct) == (pytest.approx(score), correct)
    assert asked == [("apple", 2)]


def test_a_colour_earns_nothing_while_the_number_is_wrong_and_the_surest_objects_decide_for_geneval():
    surest = []

    def colours_of(name, detections):
        surest.extend(detections)
        return ["red"]

    pictures = found(at(0, 0, score=0.5), at(50, 0, score=0.8))
    verdict = judge(pictures, {"include": [entry("apple", color="red")]}, colours_of)
    assert verdict == Verdict(score=0.0, correct=True)  # (1 − |1 − 2| + 0) / 2
    assert [one.score for one in surest] == [0.8]


@pytest.mark.parametrize(
    ("cat", "score", "correct"),
    [((80, 50), 1.0, True), ((20, 50), 2 / 3, False), ((50, 51), 2 / 3, False), (None, 1 / 3, False)],
    ids=["right", "left", "on it", "absent"],
)
def test_positions_are_relative_to_an_earlier_entry(cat, score, correct):
    detections = [at(50, 50, "bench")] + ([at(*cat, "cat")] if cat else [])
    verdict = judge(found(*detections), RIGHT_OF_A_BENCH, no_colours)
    assert (verdict.score, verdict.correct) == (pytest.approx(score), correct)


def test_a_position_needs_what_it_is_relative_to():
    verdict = judge(found(at(80, 50, "cat")), RIGHT_OF_A_BENCH, no_colours)
    assert verdict.score == pytest.approx(1 / 3)  # 0 for the bench, 1 for the cat, 0 for where it is
    assert verdict.reasons == ("0 bench, 1 wanted", "nothing that cat could be right of")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-40, 0, {"left of"}),
        (40, 0, {"right of"}),
        (0, -40, {"above"}),
        (0, 40, {"below"}),
        (40, 40, {"right of", "below"}),
        (1.9, 0, set()),
        (0, 0, set()),
        (3.9, 0, set()),
        (4.1, 0, {"right of"}),
    ],
)
def test_relations_follow_the_centres_less_a_tenth_of_the_sizes(x, y, expected):
    # both boxes are 10 wide: the offset x shrinks by 2, and must stay above half of its own length, so x must exceed 4
    assert relations(at(x, y).box, at(0, 0).box) == expected


def test_doubtful_boxes_and_second_boxes_on_one_object_are_left_out():
    detections = [at(0, 0, score=0.5), at(1, 0, score=0.9), at(40, 0, score=0.31), at(80, 0, score=0.3), at(1, 0, "pear", score=0.4)]
    names = {name: [one.score for one in group] for name, group in kept(detections, threshold=0.3, overlap=0.5).items()}
    assert names == {"apple": [0.9, 0.31], "pear": [0.4]}
    assert len(kept(detections, threshold=0.3, overlap=1.0)["apple"]) == 3
    assert len(kept([at(20 * n, 0) for n in range(30)], threshold=0.3, overlap=0.5)["apple"]) == 16


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "GenEval needs the fact 'include'"),
        ({"include": ["cat"]}, r"must read \{'class': 'bench', 'count': 2\}, got 'cat'"),
        ({"include": [{"count": 2}]}, "must read"),
        ({"include": [entry("cat", 0)]}, "the count of 'cat' must be >= 1, got 0"),
        ({"include": [entry("cat", color="teal")]}, "the color of 'cat' must be one of red, .* got 'teal'"),
        ({"include": [entry("cat"), entry("dog", position=["beside", 0])]}, "the position of 'dog' must be one of left of"),
        ({"include": [entry("dog", position=["above", 0])]}, "the index of an earlier entry"),
    ],
)
def test_facts_that_are_not_genevals_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        requirements(facts)
