"""What ``benchmarks/noisegate.py`` found, as tables and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from noisegate_found import MEASURES, Comparison, Found, clustered, corrected, merged
from noisegate_pictures import draw

from robot.evaluation import PairedOutcomes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["write_report"]

COMMAND = "python benchmarks/noisegate.py"


def write_report(root: Path, names: Sequence[str], out: Path, picture: Path) -> None:
    """Merge the parts, write tables and pictures.

    Args:
        root: Folder of the parts.
        names: Of the tasks.
        out: Of the results, without suffix.
        picture: Of the schedules.

    Raises:
        SystemExit: If there is nothing to report yet.
    """
    tasks = merged(root, names, out.with_suffix(".jsonl"))
    found = [Found(name=name, lines=tasks[name]) for name in names if name in tasks]
    found = [one for one in found if one.selection and one.report]
    if not found:
        raise SystemExit(f"there is nothing to report in {root} yet; run {COMMAND} --task {names[0]} first")
    draw(found, out.with_suffix(".png"), picture)
    sections = "\n\n".join(section(one) for one in found)
    out.with_suffix(".md").write_text(f"{_head(found)}\n\n{sections}\n", encoding="utf-8")


def _head(found: list[Found]) -> str:
    return (
        "# Does a learned schedule of noise beat those made by hand?\n\n"
        f"`{COMMAND}`; tasks: {', '.join(one.settings['title'] for one in found)}. Every arm takes the same number of denoising steps; "
        "all arms play the same report seeds from the same noise. Success of single arms with 95 % Wilson intervals; differences of single "
        "arms paired (Newcombe, exact McNemar). Learned arms are pooled over training seeds: intervals resample report seeds (cluster "
        "bootstrap), tests flip the sign of each report seed's difference. They speak for new episodes of these gates, not for gates from "
        "new training seeds: what those vary by, the column of each seed shows. Holm's correction is over all tests of a table. "
        "Latency: of one chunk at batch 1, against the shared schedule within the same turn.\n\n"
        "![Success of every arm, and the schedules](noisegate.png)"
    )


def section(found: Found) -> str:
    """All about one task."""
    settings = found.settings
    sizes = " ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in ("groups", "group_size", "updates"))
    facts = (
        f"`{COMMAND} --task {found.name} {sizes} --select {len(found.selection[found.best])} --episodes {len(found.seeds)}`\n\n"
        f"{settings['steps']} denoising steps, {settings['execute']} actions of a chunk executed, episodes of at most "
        f"{settings['env'].get('max_steps')} control steps; {len(found.seeds)} report seeds, "
        f"{len(found.selection[found.best])} selection seeds. What counts: {MEASURES[found.primary]}."
    )
    parts = [f"## {settings['title']}", facts]
    if found.learned:
        parts += [_answers(found), _learned_table(found), _singles(found), _training(found)]
    parts += ["### Schedules made by hand", _hand_made(found), _attention(found)]
    return "\n\n".join(part for part in parts if part)


def _tests(found: Found) -> dict[tuple[str, str], Comparison]:
    """Every way of learning against the best hand-made schedule and the shared one."""
    others = list(dict.fromkeys((found.best, "shared")))
    tests = corrected(found.against(way, other, found.primary) for way in found.learned for other in others)
    return {(test.first, test.second): test for test in tests}


def _answers(found: Found) -> str:
    """Sentences."""
    tests, measure, points = _tests(found), MEASURES[found.primary], found.primary == "success"
    best = "the shared schedule, which is also the best hand-made" if found.best == "shared" else f"the best hand-made ({found.best})"
    told = []
    for (way, other), test in tests.items():
        what = best if other == found.best else "the shared schedule"
        told.append(f"- **{way}** {test.verdict} {what}: {measure} {test.words(points=points)}.")
    half = max((test.high - test.low) / 2 for test in tests.values())
    reach = f"{100 * half:.1f} points" if points else f"{half:.2g}"
    highest = max(found.hand_made, key=lambda name: found.report[name].values(found.primary).mean())
    reached = found.report[highest].values(found.primary).mean()
    told.append(
        f"- Intervals (95 %) reach up to {reach} to either side; smaller differences cannot be seen here. Chosen on selection seeds: "
        f"{found.best}; highest of those made by hand on the report seeds themselves: {highest}, {reached:.3f}."
    )
    return "\n".join(told)


def _learned_table(found: Found) -> str:
    tests = _tests(found)
    others = list(dict.fromkeys((found.best, "shared")))
    other_measure = "max_reward" if found.primary == "success" else "success"
    rows = ["| learned | success | of each training seed | highest reward | return |" + "".join(f" against {name} |" for name in others)]
    rows[0] += f" {MEASURES[other_measure]} against {found.best} | evaluations per action (frames, actions) | latency |"
    rows.append("|---" * (rows[0].count("|") - 1) + "|")
    for way, arms in found.learned.items():
        beside = found.against(way, found.best, other_measure)
        cells = [way, _mean(found, arms, "success"), ", ".join(f"{_rate(found, arm):.3f}" for arm in arms)]
        cells += [_mean(found, arms, "max_reward"), _mean(found, arms, "return")]
        cells += [tests[way, other].words(points=found.primary == "success") for other in others]
        cells += [
            beside.words(points=other_measure == "success", test=False),
            _evaluations(found, arms),
            _latency(found, arms),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _singles(found: Found) -> str:
    """Each gate by itself."""
    arms = [arm for group in found.learned.values() for arm in group]
    others = list(dict.fromkeys((found.best, "shared")))
    tests = corrected(found.single(arm, other) for arm in arms for other in others)
    rows = ["| gate | success |" + "".join(f" against {other} |" for other in others), "|---" * (2 + len(others)) + "|"]
    for index, arm in enumerate(arms):
        cells = [test.words(points=True) for test in tests[index * len(others) : (index + 1) * len(others)]]
        rows.append(f"| {arm} | {_wilson(found, arm)} | " + " | ".join(cells) + " |")
    return "Each gate by itself (success):\n\n" + "\n".join(rows)


def _training(found: Found) -> str:
    rows = ["| training | episodes | informative groups | reward, first → last 3 updates | success | multipliers | final times |"]
    rows.append("|---|---|---|---|---|---|---|")
    for line in found.kind("training"):
        final = found.report[line["arm"]].line["times"][-1] if line["arm"] in found.report else []
        cells = [line["arm"], str(line["episodes"]), f"{np.mean(line['informative']):.2f}"]
        cells += [f"{np.mean(line[name][:3]):.3f} → {np.mean(line[name][-3:]):.3f}" for name in ("reward", "success")]
        cells += [_numbers(line.get("constants", line["multiplier"])), _numbers(final)]
        rows.append("| " + " | ".join(cells) + " |")
    note = (
        "How the gates learned (rewards and success are those of explored episodes). Multipliers: of constants their mean, of the others "
        "the mean drawn in the last five updates; final times: mean on the report seeds, 0 for the shared schedule. `gate, warm` has the "
        "episodes of its constants behind it too."
    )
    return note + "\n\n" + "\n".join(rows)


def _hand_made(found: Found) -> str:
    arms = [name for name in found.hand_made if name != "shared"]
    tests = {test.first: test for test in corrected(found.single(arm, "shared") for arm in arms)}
    rows = ["| schedule | selection: success, highest reward | report: success | highest reward | return | success against shared |"]
    rows[0] += " evaluations per action (frames, actions) | latency |"
    rows.append("|---" * 8 + "|")
    for name in found.hand_made:
        chosen = found.selection[name]
        title = f"**{name}** (chosen)" if name == found.best else name
        cells = [title, f"{chosen.values('success').mean():.3f}, {chosen.values('max_reward').mean():.3f}", _wilson(found, name)]
        cells += [
            _mean(found, [name], "max_reward"),
            _mean(found, [name], "return"),
            tests[name].words(points=True) if name in tests else "–",
        ]
        cells += [_evaluations(found, [name]), _latency(found, [name])]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _attention(found: Found) -> str:
    """Time 1 against attention cut."""
    cut, lines = found.stage("attention cut").get("masked"), found.kind("attention")
    if cut is None or not lines or "masked" not in found.report:
        return ""
    masked = found.report["masked"]
    seeds = sorted(set(cut.line["seeds"]) & set(masked.line["seeds"]))
    table = PairedOutcomes.of(*(arm.values("success", seeds).astype(bool).tolist() for arm in (cut, masked)))
    low, high = table.interval()
    distance = lines[0]
    return (
        "Frames at time 1 against frames that the actions do not attend to at all (masked schedule): actions in normalised units differ by "
        f"{distance['cut']:.3g} (root mean square); two draws of the whole model from different noise differ by "
        f"{distance['other_noise']:.3g}. Success with attention cut {table.only_first + table.both} of {table.pairs}, difference "
        f"{100 * table.difference:+.3g} points [{100 * low:+.3g}, {100 * high:+.3g}], p = {table.p_value:.2g}."
    )


def _rate(found: Found, arm: str) -> float:
    return float(found.pooled([arm], "success").mean())


def _wilson(found: Found, arm: str) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*found.interval(arm))


def _mean(found: Found, arms: Sequence[str], measure: str) -> str:
    values = found.pooled(arms, measure)
    low, high = clustered(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]" if measure != "return" else f"{values.mean():.4g}"


def _evaluations(found: Found, arms: Sequence[str]) -> str:
    return ", ".join(f"{np.mean([found.report[arm].per_action(stream) for arm in arms]):.3f}" for stream in ("video", "action"))


def _latency(found: Found, arms: Sequence[str]) -> str:
    """Against the shared schedule; gates of one way are equally fast, so one was timed."""
    timed = {arm: ratio["median"] for line in found.kind("latency") for arm, ratio in line["ratio"].items()}
    name = arms[0] if arms[0] in timed else arms[0].rpartition(" ")[0]
    return f"{timed[name]:.2f}" if name in timed else "–"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
