"""Known answers: every way in which a reward is broken is found and named."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from flowrl.errors import RewardError
from flowrl.rl import RewardBatch
from rewards import (
    Brightness,
    CompositeReward,
    Diversity,
    HeldoutLegibility,
    JpegCompressibility,
    Legibility,
    WithinGroupRank,
)
from rewards.known_pictures import PHOTOGRAPHS, degraded, drawn_shapes, drawn_word, photographs
from rewards.self_test import KnownAnswer, SelfTestReport, run_self_test, run_self_tests

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def square(colour):
    return torch.tensor(COLOURS[colour]).view(3, 1, 1).expand(3, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Likeness of the picture's mean colour to the colour that the prompt names; each test breaks it in one way."""

    weights: ClassVar = {"colour": 1.0}

    def known_answers(self):
        squares = torch.stack([square(name) for name in COLOURS])
        return [KnownAnswer.matching("coloured squares", squares, [f"a {name} square" for name in COLOURS], hint="mind the paint")]

    def likeness(self, samples, prompts):
        wanted = torch.tensor([next(rgb for name, rgb in COLOURS.items() if name in prompt) for prompt in prompts])
        return (samples.mean(dim=(2, 3)) * wanted).sum(1)

    def __call__(self, samples, prompts):
        return RewardBatch({"colour": self.likeness(samples, prompts)})


class Zero(Colour):
    def likeness(self, samples, prompts):
        return torch.zeros(len(samples))


class PromptBlind(Colour):
    def likeness(self, samples, prompts):
        return super().likeness(samples, ["red"] * len(prompts))


class PictureBlind(Colour):
    def likeness(self, samples, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


class Bgr(Colour):
    def likeness(self, samples, prompts):
        return super().likeness(samples.flip(1), prompts)


class Negative(Colour):
    def likeness(self, samples, prompts):
        return -super().likeness(samples, prompts)


class Holes(Colour):
    def likeness(self, samples, prompts):
        scores = super().likeness(samples, prompts)
        scores[4] = torch.nan
        return scores


class GreenAsBlue(Colour):
    def likeness(self, samples, prompts):
        return super().likeness(samples, ["a blue square" if "green" in prompt else prompt for prompt in prompts])


class Down(Colour):
    def likeness(self, samples, prompts):
        raise RewardError("the server is gone")


def test_a_working_reward_passes():
    report = run_self_test(Colour())
    assert report.problems == ()
    assert report.passed
    (case,) = report.cases
    assert (case.name, case.held, case.pairs) == ("coloured squares", 12, 12)
    assert case.scores == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (Zero(), "Zero: every score is 0, whatever the picture and the prompt; did its weights load (no missing keys)?"),
        (PromptBlind(), "the prompt plays no part, one picture scores the same under different prompts; is the tokenizer the model's own?"),
        (PictureBlind(), "the picture plays no part, different pictures score the same under one prompt"),
        (Bgr(), "with red and blue swapped they do: the channels are in the wrong order (BGR where RGB is wanted)"),
        (Negative(), "every comparison comes out the wrong way round: is a sign or a label swapped?"),
        (Holes(), "coloured squares: 1 of 9 scores are not finite: 1, 0, 0, 0, nan, 0, 0, 0, 1"),
        (Down(), "Down cannot score: the server is gone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Colour) else "",
)
def test_what_is_broken_is_named(broken, problem):
    report = run_self_test(broken)
    assert len(report.problems) == 1
    assert problem in report.problems[0]
    assert not report.passed


def test_an_order_that_is_wrong_in_another_way_is_shown_with_the_scores_and_the_hint():
    (problem,) = run_self_test(GreenAsBlue()).problems
    assert problem.startswith("GreenAsBlue: coloured squares: 7 of 12 comparisons come out right, 100% must; ")
    assert "'a green square' (row 4) scores 0, which must be above" in problem
    assert problem.endswith("mind the paint")


def test_a_share_of_the_pairs_may_be_enough_and_a_margin_must_be_reached():
    grey = torch.tensor([0.9, 0.5, 0.6]).view(3, 1, 1, 1).expand(3, 3, 4, 4)

    def problems(**others):
        return run_self_test(Brightness(), cases=[KnownAnswer.of_pictures("grey", grey, "x", **others)]).problems

    assert problems(share=0.5) == ()
    assert "1 of 2 comparisons come out right, 100% must" in problems()[0]
    assert "0 of 2 comparisons come out right, 50% must" in problems(share=0.5, margin=0.45)[0]


def test_one_part_can_be_asked_for_and_otherwise_the_weighted_sum_counts():
    @dataclass(frozen=True, kw_only=True)
    class TwoParts:
        weights: dict[str, float] = field(default_factory=lambda: {"bright": 1.0, "dark": 0.0})

        def __call__(self, samples, prompts):
            bright = samples.mean(dim=(1, 2, 3))
            return RewardBatch({"bright": bright, "dark": torch.full_like(bright, torch.nan) - bright})

    case = {"name": "x", "pictures": torch.stack([square("red"), square("red") / 2]), "prompts": ("x", "x"), "order": ((0, 1),)}
    assert run_self_test(TwoParts(), cases=[KnownAnswer(**case)]).problems == ()
    assert "not finite" in run_self_test(TwoParts(), cases=[KnownAnswer(**case, part="dark")]).problems[0]


def test_every_reward_inside_another_is_tested_by_itself():
    class Nought(Zero):
        weights: ClassVar = {"nought": 1.0}

        def __call__(self, samples, prompts):
            return RewardBatch({"nought": torch.zeros(len(samples))})

    reward = CompositeReward(rewards=(Colour(), WithinGroupRank(reward=Nought()), Diversity()), weights={"colour": 0.0})
    reports = run_self_tests(reward)
    assert [report.reward for report in reports] == ["Colour", "Nought", "Diversity"]
    assert [report.passed for report in reports] == [True, False, True]


def test_a_reward_may_test_itself():
    class Remote(Colour):
        def self_test(self):
            return SelfTestReport(reward="Remote", cases=(), problems=("asked elsewhere",))

    assert run_self_test(Remote()).problems == ("asked elsewhere",)


def test_a_reward_without_known_answers_is_asked_for_photographs_and_may_refuse_their_prompts():
    class Plain:
        weights: ClassVar = {"plain": 1.0}

        def __call__(self, samples, prompts):
            assert tuple(prompts) == PHOTOGRAPHS
            return RewardBatch({"plain": samples.mean(dim=(1, 2, 3))})

    class Constant(Plain):
        def __call__(self, samples, prompts):
            return RewardBatch({"plain": torch.full((len(samples),), 0.5)})

    class Picky(Plain):
        def __call__(self, samples, prompts):
            raise ValueError("a prompt needs a digit")

    class Factual(Plain):
        def __call__(self, samples, prompts):
            return RewardBatch({"plain": torch.tensor([prompt.facts["count"] for prompt in prompts])})

    assert run_self_test(Plain()).problems == ()
    assert len(run_self_test(Plain()).cases) == 1
    assert (run_self_test(Factual()).problems, run_self_test(Factual()).cases) == ((), ())
    case = KnownAnswer.of_pictures("own", torch.zeros(2, 3, 4, 4), "a")
    (problem,) = run_self_test(Factual(), cases=[case]).problems
    assert problem == "Factual cannot score: AttributeError: 'str' object has no attribute 'facts'"
    assert "every score is 0.5" in run_self_test(Constant()).problems[0]
    assert (run_self_test(Picky()).problems, run_self_test(Picky()).cases) == ((), ())


@pytest.mark.parametrize("reward", [Brightness(), JpegCompressibility(), Legibility(), HeldoutLegibility()], ids=lambda r: type(r).__name__)
def test_the_rewards_that_need_no_weights_pass(reward):
    report = run_self_test(reward)
    assert report.problems == ()
    assert sum(case.held for case in report.cases) >= 2


def test_a_classifier_that_was_trained_on_nothing_fails(tmp_path):
    from safetensors.torch import save_file

    from rewards.legibility import CNN_SHAPES

    generator = torch.Generator().manual_seed(0)
    shapes = {name: tuple(side or 1 for side in shape) for name, shape in CNN_SHAPES.items()}
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, tmp_path / "random.safetensors")
    (problem,) = run_self_test(Legibility(classifier=str(tmp_path / "random.safetensors"))).problems
    assert "scans of digits" in problem
    assert "95% must" in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": ()}, "order must name pairs of the rows 0 to 1"),
        ({"order": ((0, 2),)}, "order must name pairs of the rows 0 to 1"),
        ({"order": ((1, 1),)}, "order must name pairs"),
        ({"margin": -1.0}, "margin must be >= 0"),
        ({"share": 1.5}, r"share in \[0, 1\]"),
        ({"prompts": ("x",)}, "got 2 samples but 1 prompts"),
    ],
)
def test_a_known_answer_that_makes_no_sense_is_refused(change, message):
    case = {"name": "x", "pictures": torch.zeros(2, 3, 4, 4), "prompts": ("x", "y"), "order": ((0, 1),)}
    with pytest.raises(ValueError, match=message):
        KnownAnswer(**case | change)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_the_photographs_are_square_colour_pictures_that_differ():
    pictures = photographs(64)
    assert pictures.shape == (3, 3, 64, 64)
    assert 0 <= pictures.min() < 0.1
    assert 0.9 < pictures.max() <= 1
    red, green, blue = pictures[1].mean(dim=(1, 2))  # an orange flower before dark green leaves
    assert red > green > blue
    assert pictures[0].mean() > pictures[2].mean() > pictures[1].mean()


def test_a_degraded_picture_keeps_its_mean_and_loses_its_detail():
    sharp = photographs(64)
    blurred = degraded(sharp, factor=8)
    torch.testing.assert_close(blurred.mean(dim=(2, 3)), sharp.mean(dim=(2, 3)), atol=0.02, rtol=0)
    assert blurred.diff(dim=-1).abs().mean() < 0.5 * sharp.diff(dim=-1).abs().mean()


def test_shapes_and_words_are_drawn_where_and_as_they_should_be():
    picture = drawn_shapes([("circle", "red"), ("square", "blue"), ("triangle", "lime")], side=90)
    assert [picture[:, 45, x].tolist() for x in (15, 45, 75, 0)] == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1]]
    assert picture[:, 35, 55].tolist() == [0, 0, 1]  # a corner of the square
    assert picture[:, 35, 25].tolist() == [1, 1, 1]  # which the circle does not reach
    word = drawn_word("A", side=64, ink="red", paper="black")
    assert word[1:].abs().max() == 0
    assert 0.002 < word[0].mean() < 0.1
