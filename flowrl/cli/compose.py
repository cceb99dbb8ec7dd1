"""Compose policies at test time: search for the weights, or evaluate given ones against each parent.

Examples:
  flowrl compose search robot/compose_toy
  flowrl compose search robot/compose_toy run_dir=runs/mine report_seeds=5000:5400 --resume
  flowrl compose eval robot/compose_toy composition.members.0.weight=0.7 composition.members.1.weight=0.3
  flowrl compose eval robot/compose_toy --seeds 2000:2200 run_dir=runs/fixed

search chooses weights on selection_seeds and reports them, every parent and the baselines on report_seeds; eval takes the weights of the
config. Both write results.json, episodes.jsonl, success_against_weight.png and report.html into run_dir; eval of a search's config
writes into run_dir/fixed.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from robot.search import CompositionEvaluation, CompositionResult, WeightSearch

__all__ = ["add_arguments", "run"]

STOPPED_BY_USER = 130
MOST_ROWS = 15  # of the table of candidates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    from flowrl.cli.console import add_trust_option

    parser.add_argument("action", choices=("search", "eval"), help="search for weights, or evaluate those of the config")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument("--seeds", metavar="A:B", help="eval: seeds of the episodes (default: the config's)")
    add_trust_option(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the episodes in run_dir; start afresh if there are none")


def run(args: argparse.Namespace) -> int:
    """Search or evaluate, then print the table."""
    from flowrl.cli.console import say, show_progress_messages

    job = _job(args)
    show_progress_messages()
    try:
        result = job.run(resume=args.resume)
    except KeyboardInterrupt:
        options = [*(["--seeds", args.seeds] if args.seeds else []), *(["--trust-checkpoint"] if args.trust_checkpoint else [])]
        command = shlex.join(["flowrl", "compose", args.action, args.config, *args.overrides, *options, "--resume"])
        say(f"\nStopped; no finished episode is lost. Go on with: {command}")
        return STOPPED_BY_USER
    _report(result)
    return 0


def _job(args: argparse.Namespace) -> WeightSearch | CompositionEvaluation:
    """What the config describes, as the action wants it."""
    from dataclasses import replace

    from flowrl.cli.console import load_robot_job
    from flowrl.errors import ConfigError
    from robot.search import CompositionEvaluation, WeightSearch

    job = load_robot_job(args)
    if not isinstance(job, WeightSearch | CompositionEvaluation):
        raise ConfigError(
            f"{args.config} describes a {type(job).__name__}, not a robot.search.WeightSearch or robot.search.CompositionEvaluation"
        )
    if args.action == "search":
        if isinstance(job, CompositionEvaluation):
            raise ConfigError(f"{args.config} describes the evaluation of fixed weights; run it with flowrl compose eval")
        if args.seeds:
            raise ConfigError("a search has two sets of seeds; set selection_seeds=A:B and report_seeds=C:D instead of --seeds")
        return job
    if isinstance(job, WeightSearch):
        return job.fixed(args.seeds)
    return replace(job, seeds=args.seeds) if args.seeds else job


def _report(result: CompositionResult) -> None:
    """Print what was found and where everything is."""
    from flowrl.cli.console import say, show
    from robot.search.page import findings

    if result.selection is not None:
        show(_candidates(result))
    show(_outcomes(result))
    for finding in findings(result):
        say(finding)
    say(f"results {result.run_dir / 'results.json'}")
    say(f"report  {result.run_dir / 'report.html'}")


def _outcomes(result: CompositionResult) -> Table:
    """Every arm on the report seeds."""
    from robot.search.page import percent, probability, signed_percent

    table = _table(f"{result.env}: {result.report_seeds} report seeds, difference in points to {result.best_parent.title}")
    for name in ("success", "95 %", "difference", "95 %", "McNemar p", "Holm p"):
        table.add_column(name, justify="right")
    for row in result.outcomes:
        cells = ["best parent", "–", "–", "–"]
        if row.against is not None:
            interval = f"{signed_percent(row.against.low)} to {signed_percent(row.against.high)}"
            cells = [signed_percent(row.against.difference), interval, probability(row.against.p_value), probability(row.against.p_holm)]
        low, high = row.interval
        style = "bold" if row is result.judged else None
        table.add_row(row.title, percent(row.rate), f"{percent(low)} – {percent(high)}", *cells, style=style)
    return table


def _candidates(result: CompositionResult) -> Table:
    """The candidates on the selection seeds, best first."""
    from robot.search.page import percent
    from robot.search.simplex import weight_label

    selection = result.selection
    candidates = [] if selection is None else sorted(selection.candidates, key=lambda row: (row.survived, row.rate), reverse=True)
    table = _table(f"{result.env}: weights of {', '.join(result.members)} on the selection seeds")
    for name in ("success", "95 %", "episodes"):
        table.add_column(name, justify="right")
    for row in candidates[:MOST_ROWS]:
        chosen = selection is not None and row.weights == selection.chosen
        label = weight_label(row.weights) + (" (chosen)" if chosen else "")
        low, high = row.interval
        episodes = f"{row.trials}" if row.survived else f"{row.trials}, dropped"
        table.add_row(label, percent(row.rate), f"{percent(low)} – {percent(high)}", episodes, style="bold" if chosen else None)
    if len(candidates) > MOST_ROWS:
        table.add_row(f"… {len(candidates) - MOST_ROWS} more", "", "", "")
    return table


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("policy")
    return table
