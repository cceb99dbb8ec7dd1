"""Evaluate a robot policy in closed loop on given seeds; compare two on the same ones.

Examples:
  flowrl rollout robot/rollout_toy --seeds 0:200
  flowrl rollout robot/rollout_toy --seeds 0:200 run_dir=runs/toy workers=2 --resume
  flowrl rollout robot/rollout_toy --seeds 0:200 run_dir=runs/other policy.bias=0.25 --against runs/toy

Writes episodes.jsonl, summary.json, report.html and videos (failures first) into run_dir, and prints the table.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rich.table import Table

    from robot.evaluation import Comparison, Rollout, RolloutSummary

__all__ = ["add_arguments", "run"]

STOPPED_BY_USER = 130
_FEW_P = 1e-3
_RARE = {"crashed": "0", "clipped steps": "0"}  # columns left out where all rows say so


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    from flowrl.cli.console import add_trust_option

    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument(
        "--seeds", metavar="A:B", help="seeds of the episodes, A to B − 1, or several ranges A:B,C:D (default: the config's)"
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished episodes of run_dir and run the others")
    add_trust_option(parser)
    parser.add_argument("--against", metavar="RUN_DIR", help="an earlier rollout to compare with, seed by seed")


def run(args: argparse.Namespace) -> int:
    """Run the episodes, then report."""
    from flowrl.cli.console import say, show_progress_messages

    rollout = _load(args)
    show_progress_messages()
    try:
        summary = rollout.run(resume=args.resume)
    except KeyboardInterrupt:
        say(f"\nStopped; finished episodes are kept. Go on with: {_resume_command(args)}")
        return STOPPED_BY_USER
    _report(summary)
    return 0


def _load(args: argparse.Namespace) -> Rollout:
    from dataclasses import replace
    from pathlib import Path

    from flowrl.cli.console import load_robot_job
    from flowrl.errors import ConfigError
    from robot.evaluation import Rollout

    rollout = load_robot_job(args)
    if not isinstance(rollout, Rollout):
        raise ConfigError(f"{args.config} describes a {type(rollout).__name__}, not a robot.evaluation.Rollout")
    given = {"seeds": args.seeds, "against": args.against and Path(args.against)}
    return replace(rollout, **{name: value for name, value in given.items() if value is not None})


def _resume_command(args: argparse.Namespace) -> str:
    options = [part for name in ("seeds", "against") if (value := getattr(args, name)) for part in (f"--{name}", value)]
    trust = ["--trust-checkpoint"] if args.trust_checkpoint else []
    resume = ["flowrl", "rollout", args.config, *args.overrides, *options, *trust, "--resume"]
    return shlex.join(resume)


def _report(summary: RolloutSummary) -> None:
    """Print the outcome and where everything is."""
    from flowrl.cli.console import say, show

    show(_table(summary))
    for comparison in summary.comparisons:
        say(_compared(comparison))
    if crashed := sum(result.crashed for result in summary.results):
        say(f"{crashed} episodes crashed and count as no success; episodes.jsonl tells why.")
    say(f"report   {summary.report}")
    say(f"episodes {summary.run_dir / 'episodes.jsonl'}")
    for video in summary.content["videos"]:
        if video["mp4"]:
            say(f"video    {summary.run_dir / video['mp4']}")


def _table(summary: RolloutSummary) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flowrl.train.figures import duration, figure

    content = summary.content
    speed = f"{figure(content['control_steps_per_s'], 3)} control steps a second"
    title = f"{content['env']}: {len(summary.results)} episodes in {duration(content['wall_time_s'])}, {speed}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    rows = [_cells(arm) for arm in content["arms"]]
    shown = [name for name in rows[0] if name not in _RARE or {row[name] for row in rows} - {_RARE[name]}]
    if all(arm["successes_at_end"] == arm["successes"] for arm in content["arms"]):
        shown.remove("at the end")
    for name in shown:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _cells(arm: Mapping[str, Any]) -> dict[str, str]:
    from flowrl.train.figures import figure

    low, high = (100 * end for end in arm["wilson_95"])
    return {
        "arm": arm["arm"],
        "solved": f"{arm['successes']}/{arm['episodes']}",
        "rate": f"{arm['success_rate']:.1%}",
        "95 %": f"{low:.1f} – {high:.1f}",
        "at the end": str(arm["successes_at_end"]),
        "task ended": str(arm["terminated"]),
        "time up": str(arm["truncated"]),
        "crashed": str(arm["crashed"]),
        "steps": figure(arm["mean_length"], 3),
        "clipped steps": str(arm["clipped_steps"]),
        "ms per chunk": ", ".join(f"{name} {figure(1000 * seconds, 3)}" for name, seconds in arm["latency_s"].items()) or "–",
    }


def _compared(comparison: Comparison) -> str:
    """The paired comparison in one line."""
    table, (low, high) = comparison.table, comparison.table.interval()
    p = f"{table.p_value:.2g}" if table.p_value >= _FEW_P else f"{table.p_value:.1e}"
    return (
        f"{comparison.first} − {comparison.second} on {table.pairs} common seeds: {100 * table.difference:+.1f} points, "
        f"95 % {100 * low:+.1f} to {100 * high:+.1f}; only {comparison.first} {table.only_first}, only {comparison.second} "
        f"{table.only_second}; exact McNemar p = {p}"
    )
