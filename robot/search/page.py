"""``report.html`` of a search or comparison: one self-contained page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from flowrl.train.figures import duration
from flowrl.train.page import write_page
from robot.search.charts import success_chart
from robot.search.simplex import weight_label

if TYPE_CHECKING:
    from robot.search.results import CompositionResult, Selection

__all__ = ["REPORT_FILE", "findings", "percent", "points", "probability", "signed_percent", "write_report"]

REPORT_FILE = "report.html"
SMALLEST_P = 1e-4
CERTAIN = 0.05  # below it a Holm-adjusted p-value counts


def write_report(result: CompositionResult) -> Path:
    """Write the page.

    Args:
        result: What was found.
    """
    return write_page(result.run_dir / REPORT_FILE, Path(__file__).with_name("report.html.j2"), _context(result))


def findings(result: CompositionResult) -> list[str]:
    """What was found, in sentences."""
    judged, best = result.judged, result.best_parent
    unseen = "" if result.selection is None else " that had no part in choosing it"
    if judged.against is None:
        notes = [f"{judged.title} is best on its own: composing gained nothing here."]
    else:
        against = judged.against
        sign = "better than" if against.difference > 0 else "worse than"
        verdict = sign if against.p_holm < CERTAIN else "not told apart from"
        notes = [
            f"{judged.title}: {percent(judged.rate)} on {judged.summary.episodes} seeds{unseen}, {verdict} {best.title} "
            f"({percent(best.rate)}; difference {points(against.difference)}, {points(against.low)} to {points(against.high)}, "
            f"Holm-adjusted p {_equal(probability(against.p_holm))})."
        ]
    notes += [_sampler_note(result)] if _sampler_note(result) else []
    return notes + ([] if result.selection is None else _selection_notes(result.selection))


def percent(value: float) -> str:
    """0.865 -> ``86.5 %``."""
    return f"{number(value)} %"


def number(value: float) -> str:
    """0.865 -> ``86.5``, where the unit stands elsewhere."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of rates: 0.07 -> ``+7.0 points``."""
    return f"{signed_percent(value)} points"


def signed_percent(value: float) -> str:
    """A difference of rates: 0.07 -> ``+7.0``."""
    return f"{100 * value:+.1f}".replace("-", "−")


def probability(value: float) -> str:
    """A p-value to two digits."""
    return f"< {SMALLEST_P:.4f}" if value < SMALLEST_P else f"{value:.2g}"


def _equal(shown: str) -> str:
    return shown if shown.startswith("<") else f"= {shown}"


def _sampler_note(result: CompositionResult) -> str:
    """Whether a parent with the stochastic sampler alone does as well as the composition."""
    rows = [row for row in result.outcomes if row.arm.role == "sde" and row.rate >= result.judged.rate > result.best_parent.rate]
    return f"{rows[0].title} reaches {percent(rows[0].rate)} without any composition: it may be the sampler that helps." if rows else ""


def _selection_notes(selection: Selection) -> list[str]:
    saved = 1 - selection.episodes / selection.exhaustive_episodes
    return [
        f"It showed {percent(selection.rate)} on the {selection.luck.trials} selection seeds that chose it. The best of "
        f"{selection.luck.candidates} equally good candidates would seem up to {points(selection.luck.independent)} better than it is "
        "there, so that figure is no result.",
        f"The search took {selection.episodes} episodes, {100 * saved:.0f} % fewer than every candidate on every seed would.",
    ]


def _context(result: CompositionResult) -> dict[str, Any]:
    selection, judged = result.selection, result.judged
    pair = len(result.members) == 2  # noqa: PLR2004
    return {
        "name": result.run_dir.resolve().name,
        "env": result.env,
        "members": result.members,
        "operator": result.operator,
        "facts": _facts(result),
        "notes": findings(result),
        "rows": result.outcomes,
        "best": result.best_parent.title,
        "chart_title": f"Success by weight of {result.members[0]}" if pair else "The best candidates",
        "chart_note": "With 95 % Wilson intervals. Dropped candidates have wider ones." if pair else "On the selection seeds.",
        "selection": selection,
        "candidates": _candidates(selection) if selection else [],
        "judged": judged,
        "certain": CERTAIN,
        "chart": Markup(success_chart(result)),
        "config": yaml.safe_dump(result.identity.get("config"), sort_keys=False, allow_unicode=True),
        "percent": percent,
        "number": number,
        "signed_percent": signed_percent,
        "report_seeds": result.report_seeds,
        "points": points,
        "probability": probability,
        "prior": _prior(result),
        "signal": result.signal,
    }


def _facts(result: CompositionResult) -> dict[str, str]:
    facts = {"weights": weight_label(result.weights), "report seeds": str(result.report_seeds), "time": duration(result.seconds)}
    latency = [f"{name} {1000 * seconds:.1f} ms" for name, seconds in result.judged.summary.latency_s.items()]
    revision = result.identity.get("git_revision")
    facts |= ({"network time per chunk": ", ".join(latency)} if latency else {}) | ({"revision": str(revision)[:10]} if revision else {})
    if result.selection is not None:
        facts |= {"selection seeds": str(result.selection.seeds), "race": result.selection.race}
        if result.selection.smooth_best is not None:
            facts["smooth optimum"] = f"{result.selection.smooth_best:.2f} {result.members[0]}"
    return facts


def _candidates(selection: Selection) -> list[dict[str, Any]]:
    return [
        asdict(candidate)
        | {"rate": candidate.rate, "label": weight_label(candidate.weights), "chosen": candidate.weights == selection.chosen}
        for candidate in selection.candidates
    ]


def _prior(result: CompositionResult) -> list[dict[str, Any]]:
    prior = result.selection.prior if result.selection else None
    if prior is None:
        return []
    return [
        {"name": name, "weight": prior.weights[index], "error": prior.gram[index][index], "gram": prior.gram[index]}
        for index, name in enumerate(result.members)
    ]
