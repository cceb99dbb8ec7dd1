"""Known answers: pictures and prompts whose order a working reward must see, and what it means when it does not.

A reward that returns zeros, ignores the prompt or reads blue as red trains a model to nothing, and nothing else tells. So a reward says
which order it must find in a few pictures (``known_answers()``), and `run_self_test` looks. ``flowrl doctor --rewards`` prints the report.

Example:
    >>> import torch
    >>> from rewards import Brightness
    >>> from rewards.self_test import KnownAnswer, run_self_test
    >>> grey = torch.stack([torch.full((3, 8, 8), level) for level in (0.9, 0.1)])
    >>> case = KnownAnswer.of_pictures("white and black", grey, "a square")
    >>> run_self_test(Brightness(), cases=[case]).problems
    ()
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch

from flowrl.errors import FlowrlError
from flowrl.rl import inner_rewards, submit_scores
from rewards.known_answers import KnownAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CaseOutcome", "KnownAnswer", "SelfTestReport", "run_self_test", "run_self_tests"]

EQUAL = 1e-6  # scores nearer than this, relative to the larger of 1 and the score, count as the same


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """How a reward scored one case.

    Attributes:
        name: Of the case.
        scores: One a row, in the order of the rows.
        held: Pairs that came out as known.
        pairs: All pairs.
        problem: What is wrong, or empty.
    """

    name: str
    scores: tuple[float, ...]
    held: int
    pairs: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """What a self-test found.

    Attributes:
        reward: Class of the reward.
        cases: One outcome a case that could be scored.
        problems: What is wrong with the reward, one text each; empty if nothing is.
        remark: Where nothing could be tested: what the reward raised.
    """

    reward: str
    cases: tuple[CaseOutcome, ...]
    problems: tuple[str, ...]
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def run_self_test(reward: Any, *, cases: Sequence[KnownAnswer] | None = None, device: torch.device | str = "cpu") -> SelfTestReport:
    """Score known answers and say what is wrong.

    Found are: scoring that fails, NaN, scores that are all the same (all zero, for instance), scores in which the prompt or the picture
    plays no part, a sign the wrong way round, swapped colour channels, and an order that is wrong in another way.

    Args:
        reward: `flowrl.rl.Reward` or `flowrl.rl.GroupReward`. A method ``self_test()`` of its own that returns a report goes first.
        cases: What to score; by default the reward's ``known_answers()``. A reward without any is only asked for scores of photographs;
            if it refuses their prompts, nothing is tested and the report has no cases.
        device: Where the pictures lie.
    """
    name = type(reward).__name__
    try:
        if cases is None and (own := getattr(reward, "self_test", None)) is not None:
            return cast("SelfTestReport", own())
        given = _cases_of(reward) if cases is None else list(cases)
        scored = [(case, _scores(reward, case, device)) for case in given]
        outcomes = [_outcome(reward, case, scores, device) for case, scores in scored]
    except (FlowrlError, ValueError, RuntimeError, OSError) as error:
        if type(error) is ValueError and cases is None and not hasattr(reward, "known_answers"):
            # It wants other prompts than ours; nothing is known about it.
            return SelfTestReport(reward=name, cases=(), problems=(), remark=f"ValueError: {error}")
        return SelfTestReport(reward=name, cases=(), problems=(f"{name} cannot score: {error}",))
    except Exception as error:  # anybody's code; it may look for facts that our prompts do not have
        known = cases is not None or hasattr(reward, "known_answers") or hasattr(reward, "self_test")
        told = f"{type(error).__name__}: {error}"
        problems = (f"{name} cannot score: {told}",) if known else ()
        return SelfTestReport(reward=name, cases=(), problems=problems, remark=told)
    general = _general_problems(name, scored)
    particular = [f"{name}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    return SelfTestReport(reward=name, cases=tuple(outcomes), problems=tuple(general or particular))


def run_self_tests(reward: Any, *, device: torch.device | str = "cpu") -> list[SelfTestReport]:
    """Self-test a reward, or where it wraps others each of those, and itself too if it has known answers.

    Args:
        reward: Any reward.
        device: Where the pictures lie.
    """
    inner = list(inner_rewards(reward))
    reports = [report for other in inner for report in run_self_tests(other, device=device)]
    tested = not inner or hasattr(reward, "known_answers") or hasattr(reward, "self_test")
    return [*reports, run_self_test(reward, device=device)] if tested else reports


def _cases_of(reward: Any) -> list[KnownAnswer]:
    known = getattr(reward, "known_answers", None)
    if known is not None:
        return list(known())
    from rewards.known_pictures import PHOTOGRAPHS, photographs

    return [KnownAnswer(name="photographs", pictures=photographs(), prompts=PHOTOGRAPHS, order=((0, 1),), share=0.0)]


def _scores(reward: Any, case: KnownAnswer, device: torch.device | str) -> list[float]:
    """The scores of a case, one a row."""
    groups = torch.zeros(len(case.prompts), dtype=torch.long, device=device)
    parts = submit_scores(reward, case.pictures.to(device), case.prompts, groups)().parts
    if case.part is not None:
        return parts[case.part].double().tolist()
    weights = dict(reward.weights)
    used = {name: weight for name, weight in weights.items() if weight} or dict.fromkeys(weights, 1.0)
    return torch.stack([parts[name].double() * weight for name, weight in used.items()]).sum(0).tolist()


def _outcome(reward: Any, case: KnownAnswer, scores: list[float], device: torch.device | str) -> CaseOutcome:
    held = _held(case, scores)
    problem = "" if _enough(case, held) and not _missing(scores) else _reason(reward, case, scores, device)
    return CaseOutcome(name=case.name, scores=tuple(scores), held=held, pairs=len(case.order), problem=problem)


def _reason(reward: Any, case: KnownAnswer, scores: list[float], device: torch.device | str) -> str:
    if missing := _missing(scores):
        return f"{case.name}: {missing} of {len(scores)} scores are not finite: {_shown(scores)}"
    wrong = next((pair for pair in case.order if not scores[pair[0]] > scores[pair[1]] + case.margin), case.order[0])
    better, worse = ((case.prompts[row], scores[row]) for row in wrong)
    told = f"{case.name}: {_held(case, scores)} of {len(case.order)} comparisons come out right, {case.share:.0%} must; "
    told += f"{better[0]!r} (row {wrong[0]}) scores {better[1]:.4g}, which must be above {worse[0]!r} (row {wrong[1]}) with {worse[1]:.4g}"
    swapped = _scores(reward, _swapped(case), device)
    if _enough(case, _held(case, swapped)) and not _missing(swapped):
        return f"{told}; with red and blue swapped they do: the channels are in the wrong order (BGR where RGB is wanted)"
    if all(scores[a] < scores[b] for a, b in case.order):
        told += "; every comparison comes out the wrong way round: is a sign or a label swapped?"
    return f"{told}; {case.hint}" if case.hint else told


def _general_problems(name: str, scored: Sequence[tuple[KnownAnswer, list[float]]]) -> list[str]:
    """What is wrong with the scores as a whole."""
    values = [score for _, scores in scored for score in scores]
    if values and not _missing(values) and all(_same(value, values[0]) for value in values):
        return [f"{name}: every score is {values[0]:.6g}, whatever the picture and the prompt; did its weights load (no missing keys)?"]
    problems = []
    over_prompts = [_same(s[a], s[b]) for case, s in scored for a, b in case.pairs_over_prompts()]
    if over_prompts and all(over_prompts):
        problems.append(
            f"{name}: the prompt plays no part, one picture scores the same under different prompts; is the tokenizer the model's own?"
        )
    over_pictures = [_same(s[a], s[b]) for case, s in scored for a, b in case.pairs_over_pictures()]
    if over_pictures and all(over_pictures):
        problems.append(f"{name}: the picture plays no part, different pictures score the same under one prompt")
    return problems


def _held(case: KnownAnswer, scores: Sequence[float]) -> int:
    return sum(scores[better] > scores[worse] + case.margin for better, worse in case.order)


def _enough(case: KnownAnswer, held: int) -> bool:
    return held >= case.share * len(case.order)


def _missing(scores: Sequence[float]) -> int:
    return int((~torch.tensor(scores, dtype=torch.float64).isfinite()).sum())


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= EQUAL * max(1.0, abs(one))


def _swapped(case: KnownAnswer) -> KnownAnswer:
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return KnownAnswer(**values | {"pictures": case.pictures.flip(1)})


def _shown(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)
