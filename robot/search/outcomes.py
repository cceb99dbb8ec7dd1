"""What each arm of a comparison reached, with intervals and paired tests against the best parent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from robot.evaluation.statistics import PairedOutcomes, holm_adjusted
from robot.evaluation.summary import ArmSummary, compare, summarise
from robot.search.simplex import Weights, corner, uniform, weight_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.evaluation.episodes import EpisodeResult

__all__ = ["AgainstBestParent", "Arm", "Baseline", "Outcome", "Role", "arm_title", "outcomes", "report_arms"]

Role: TypeAlias = Literal["candidate", "composed", "parent", "uniform", "average", "sde"]
Baseline: TypeAlias = Literal["uniform", "average", "sde"]

_CLAIMS, _BASELINES = ("composed", "candidate", "parent"), ("uniform", "average", "sde")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to act.

    Attributes:
        role: ``candidate`` of a search, ``composed`` (what is being judged), ``parent`` (a member alone), ``uniform`` (equal weights),
            ``average`` (the members' actions averaged instead of their scores) or ``sde`` (a member alone, with the stochastic sampler).
        weights: Of the members.
    """

    role: Role
    weights: Weights

    @property
    def name(self) -> str:
        """What tells its episodes apart: arms of a name act in the same way."""
        prefix = f"{self.role} " if self.role in ("average", "sde") else ""
        return prefix + weight_label(self.weights)


@dataclass(frozen=True, kw_only=True)
class AgainstBestParent:
    """An arm against the best parent on the same seeds.

    Attributes:
        difference: Success rate of the arm minus the parent's.
        low: Lower end of its 95 % interval (Newcombe).
        high: Upper end.
        only_arm: Seeds on which only the arm succeeded.
        only_parent: Seeds on which only the parent did.
        p_value: Exact McNemar.
        p_holm: The same after Holm's correction for all comparisons of its family.
    """

    difference: float
    low: float
    high: float
    only_arm: int
    only_parent: int
    p_value: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an arm reached.

    Attributes:
        arm: Which one.
        title: For people.
        summary: Success with its interval, length, latency, disagreement.
        against: The best parent; None for the best parent itself.
    """

    arm: Arm
    title: str
    summary: ArmSummary
    against: AgainstBestParent | None = None

    @property
    def rate(self) -> float:
        """Success rate."""
        return self.summary.success_rate

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson."""
        return self.summary.wilson_95


def report_arms(weights: Weights, baselines: Sequence[Baseline]) -> list[Arm]:
    """What is run on the report seeds, each way of acting once.

    Args:
        weights: Of the composition to judge; where they are a parent's, that parent is the composition.
        baselines: Besides the parents. ``average`` takes the same weights, or equal ones where those are a parent's.
    """
    members = len(weights)
    single = max(weights) == 1
    arms = [] if single else [Arm(role="composed", weights=weights)]
    arms += [Arm(role="parent", weights=corner(members, index)) for index in range(members)]
    if "uniform" in baselines and weight_label(weights) != weight_label(uniform(members)):
        arms.append(Arm(role="uniform", weights=uniform(members)))
    if "average" in baselines:
        arms.append(Arm(role="average", weights=uniform(members) if single else weights))
    if "sde" in baselines:
        arms += [Arm(role="sde", weights=corner(members, index)) for index in range(members)]
    return arms


def arm_title(arm: Arm, members: Sequence[str]) -> str:
    """Its name for people.

    Args:
        arm: Which one.
        members: Names of the members.
    """
    label = weight_label(arm.weights)
    alone = members[arm.weights.index(1.0)] if 1.0 in arm.weights else label
    titles = {
        "parent": f"{alone} alone",
        "uniform": "equal weights",
        "average": f"actions averaged, {label}",
        "sde": f"{alone} alone, SDE sampler",
    }
    return titles.get(arm.role, f"composed, {label}")


def outcomes(results: Mapping[Arm, Sequence[EpisodeResult]], members: Sequence[str]) -> list[Outcome]:
    """Success of every arm, and each against the best parent.

    The best parent is the one with the highest success on these very seeds (the first of equal ones), which is hard on the composition.
    Holm's correction is for two families: the composition and the other parents, and the baselines.

    Args:
        results: By arm, each on the same seeds; the parents among them.
        members: Names of the members.
    """
    rows = {arm: Outcome(arm=arm, title=arm_title(arm, members), summary=summarise(found, arm.name)) for arm, found in results.items()}
    best = max((arm for arm in rows if arm.role == "parent"), key=lambda arm: rows[arm].rate)
    others = [arm for arm in rows if arm != best]
    tables = {arm: compare(results[arm], results[best], names=(arm.name, best.name)).table for arm in others}
    for family in (_CLAIMS, _BASELINES):
        family_arms = [arm for arm in others if arm.role in family]
        adjusted = holm_adjusted([tables[arm].p_value for arm in family_arms])
        for arm, p_holm in zip(family_arms, adjusted, strict=True):
            rows[arm] = replace(rows[arm], against=_against(tables[arm], p_holm))
    return list(rows.values())


def _against(table: PairedOutcomes, p_holm: float) -> AgainstBestParent:
    low, high = table.interval()
    return AgainstBestParent(
        difference=table.difference,
        low=low,
        high=high,
        only_arm=table.only_first,
        only_parent=table.only_second,
        p_value=table.p_value,
        p_holm=p_holm,
    )
