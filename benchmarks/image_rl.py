"""RL methods on the embedded digits model at equal updates, equal network evaluations and equal seconds.

    python benchmarks/image_rl.py --jobs 2

Every method fine-tunes the same LoRA from the same base with the same prompts, group size, optimiser and learning rate; only sampler
and advantage differ. Each rollout gives one optimiser step. A run goes on until it has spent the budget of forward equivalents: one
per state evaluated in a rollout, three per state trained (forward and backward). Raw curves go to ``benchmarks/results/image_rl.jsonl``,
the table to ``image_rl.md``, the plot to ``image_rl.png``.
Runs that are in the raw file already are not made again (delete it to start over).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrl.train import RLTrainer

RESULTS = Path(__file__).parent / "results"
RAW = RESULTS / "image_rl.jsonl"
CONFIG = "image/digits_g2rpo"
STEPS = 10
COMMON = ("update.epochs=1", "update.micro_batch=96", "optimizer.lr=3.0e-3", "evaluation.images_per_prompt=20")
TRAINED_COST = 3  # forward equivalents of a forward and backward pass
HELD_OUT, DIVERSITY = "eval/heldout_accuracy", "diversity"

FLOW_SDE = {"target": "flowrl.flow.FlowSDE", "noise_level": 0.7}
DANCE_SDE = {"target": "flowrl.flow.DanceSDE", "noise_level": 0.3}
GROUP_STD = {"target": "flowrl.rl.MultiGranularityAdvantage"}
BATCH_STD = {"target": "flowrl.rl.MultiGranularityAdvantage", "std": "batch", "ddof": 0, "eps": 1.0e-4}


@dataclass(frozen=True)
class Method:
    """A method as its sampler and advantage; the rest of the configuration is the same for all.

    Attributes:
        sampler: Configuration of the sampler, without grid and group size.
        advantage: Configuration of the advantage.
    """

    sampler: dict[str, Any]
    advantage: dict[str, Any]


def _granular(strides: Sequence[int], anchoring: str) -> Method:
    half = list(range(STEPS // 2))
    kind = {"target": "samplers.SingularStochasticSampler", "sde_indices": half, "strides": list(strides), "anchoring": anchoring}
    return Method(kind | {"dynamics": FLOW_SDE}, GROUP_STD)


def _window(**settings: Any) -> dict[str, Any]:
    return {"target": "samplers.WindowSampler", "dynamics": FLOW_SDE, "shared_noise": True, **settings}


METHODS = {
    "G2RPO {1}": _granular((1,), "official"),
    "G2RPO {1,2}": _granular((1, 2), "official"),
    "G2RPO {1,2,3}": _granular((1, 2, 3), "official"),
    "G2RPO {1,2} paper": _granular((1, 2), "paper"),
    "G2RPO {1,2,3} paper": _granular((1, 2, 3), "paper"),
    "MixGRPO": Method(_window(size=2, stride=1, shift_every=5), GROUP_STD),
    "DanceGRPO": Method(
        {"target": "samplers.SDESampler", "dynamics": DANCE_SDE, "shared_noise": True, "exclude_last": True, "train_fraction": 0.6},
        GROUP_STD,
    ),
    "Flow-GRPO": Method({"target": "samplers.SDESampler", "dynamics": FLOW_SDE, "shared_noise": False}, BATCH_STD),
    "Flow-GRPO-Fast": Method(_window(size=2, shift_every=1, order="random", last_index=STEPS // 2 - 1), BATCH_STD),
}


def cost(line: dict[str, Any]) -> float:
    """Forward equivalents that a run had spent at a line of its metrics."""
    return float(line["network_evaluations"] + TRAINED_COST * line["trained_states"])


def _config(method: Method, seed: int, run_dir: str, updates: int, evaluations: int) -> dict[str, Any]:
    from flowrl.config import load_config

    config = load_config(
        CONFIG, [f"seed={seed}", f"run_dir={run_dir}", f"updates={updates}", "trackers=[]", *COMMON, f"checkpoint_every={updates}"]
    )
    shared = {name: config["sampler"][name] for name in ("grid", "group_size")}
    config["sampler"], config["advantage"] = method.sampler | shared, method.advantage
    config["evaluate_every"] = max(1, round(updates / evaluations))
    return config


def train(name: str, seed: int, budget: float, evaluations: int, threads: int) -> list[dict[str, Any]]:
    """One run in this process: its evaluations with the cost at each."""
    import torch

    from flowrl.config import instantiate

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="flowrl-") as folder:
        plan = instantiate(_config(METHODS[name], seed, f"{folder}/run", 1, 1))
        updates = updates_for(plan, budget)
        instantiate(_config(METHODS[name], seed, f"{folder}/run", updates, evaluations)).run()
        lines = _lines(folder, "run")
    return [{"method": name, "seed": seed, **line} for line in lines if line["kind"] == "eval"]


def updates_for(trainer: RLTrainer, budget: float) -> int:
    """How many updates spend a budget: dry draws from a field that is zero everywhere count what each costs."""
    import torch

    from flowrl.flow import Condition
    from flowrl.shapes import seeded_generator

    spent, update = 0.0, 0
    while spent < budget:
        sampler = trainer.sampler.for_update(update, trainer.seed)
        drawn = sampler.sample(lambda x, _t, _c: 0 * x, torch.zeros(sampler.noise_rows(), 1), Condition(rows=1), seeded_generator(0))
        spent += trainer.prompts_per_update * (drawn.network_evaluations + TRAINED_COST * len(drawn.parents))
        update += 1
    return update


def _lines(folder: str, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def at(lines: Sequence[dict[str, Any]], axis: Callable[[dict[str, Any]], float], where: float, value: str) -> float:
    """A run's value at a point of an axis, linear between evaluations; NaN beyond its end."""
    points = sorted((axis(line), line[value]) for line in lines)
    if where > points[-1][0] * 1.001:
        return math.nan
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= where <= x1:
            return y0 + (y1 - y0) * (where - x0) / (x1 - x0)
    return points[-1][1]


AXES: dict[str, Callable[[dict[str, Any]], float]] = {
    "updates": lambda line: line["update"],
    "forward equivalents": cost,
    "seconds": lambda line: line["seconds"],
}


def _spread(values: Sequence[float]) -> str:
    finite = [value for value in values if not math.isnan(value)]
    if len(finite) < len(values):
        return "–"
    return f"{statistics.mean(finite):.3f} ± {statistics.stdev(finite) if len(finite) > 1 else 0.0:.3f}"


def table(runs: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """Markdown: held-out accuracy and diversity of every method where all have spent the same, for three meanings of "the same"."""
    names = list(dict.fromkeys(name for name, _ in runs))
    common = {axis: min(max(read(line) for line in lines) for lines in runs.values()) for axis, read in AXES.items()}
    head = [f"{axis} = {common[axis]:,.0f}" for axis in AXES]
    rows = [
        f"| method | cost of an update | {' | '.join(f'accuracy at {h}' for h in head)} | diversity at {head[1]} |",
        "|" + "---|" * (len(AXES) + 3),
    ]
    for name in names:
        mine = [lines for (method, _), lines in runs.items() if method == name]
        per_update = statistics.mean(cost(lines[-1]) / lines[-1]["update"] for lines in mine)
        cells = [_spread([at(lines, AXES[axis], common[axis], HELD_OUT) for lines in mine]) for axis in AXES]
        diversity = _spread([at(lines, cost, common["forward equivalents"], DIVERSITY) for lines in mine])
        rows.append(f"| {name} | {per_update:,.0f} | {' | '.join(cells)} | {diversity} |")
    return "\n".join(rows)


def plot(runs: dict[tuple[str, int], list[dict[str, Any]]], path: Path) -> None:
    """Accuracy (above) and diversity (below) against updates, forward equivalents and seconds: mean ± std over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, panels = plt.subplots(2, 3, figsize=(15, 8), sharey="row", constrained_layout=True)
    names = list(dict.fromkeys(name for name, _ in runs))
    for row, value in enumerate((HELD_OUT, DIVERSITY)):
        for panel, (axis, read) in zip(panels[row], AXES.items(), strict=True):
            for position, name in enumerate(names):
                mine = [lines for (method, _), lines in runs.items() if method == name]
                grid = np.linspace(0, min(max(map(read, lines)) for lines in mine), 60)
                curves = np.array([[at(lines, read, x, value) for x in grid] for lines in mine])
                style = {"color": plt.get_cmap("tab10")(position), "linestyle": "--" if "paper" in name else "-"}
                panel.plot(grid, curves.mean(0), label=name, **style)
                panel.fill_between(
                    grid, curves.mean(0) - curves.std(0), curves.mean(0) + curves.std(0), color=style["color"], alpha=0.12, linewidth=0
                )
            panel.set_xlabel(axis)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("held-out accuracy")
    panels[1][0].set_ylabel("within-prompt diversity")
    panels[0][0].set_xlim(0, 2 * min(max(map(AXES["updates"], lines)) for lines in runs.values()))
    panels[1][0].set_xlim(panels[0][0].get_xlim())
    panels[0][2].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def read_runs() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The raw file by method and seed, methods in their order above."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for text in RAW.read_text(encoding="utf-8").splitlines() if RAW.exists() else []:
        line = json.loads(text)
        runs.setdefault((line["method"], line["seed"]), []).append(line)
    return dict(sorted(runs.items(), key=lambda item: (list(METHODS).index(item[0][0]), item[0][1])))


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=120_000, help="forward equivalents of a run")
    parser.add_argument("--evaluations", type=int, default=8, help="evaluations along a run")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a run")
    parser.add_argument("--note", default="", help="a sentence about the circumstances, written under the table")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    RESULTS.mkdir(exist_ok=True)
    done = read_runs()
    todo = [(name, seed) for seed in range(options.seeds) for name in METHODS if (name, seed) not in done]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(train, name, seed, options.budget, options.evaluations, options.threads) for name, seed in todo]
        for future in concurrent.futures.as_completed(futures):
            with RAW.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in future.result())
    runs = read_runs()
    settings = f"--seeds {options.seeds} --budget {options.budget:.0f} --jobs {options.jobs} --threads {options.threads}"
    command = f"python benchmarks/image_rl.py {settings}"
    head = f"`{command}`, mean ± std over {options.seeds} seeds; an update's cost is in forward equivalents."
    text = "\n\n".join(filter(None, (head, table(runs), options.note))) + "\n"
    (RESULTS / "image_rl.md").write_text(text, encoding="utf-8")
    plot(runs, RESULTS / "image_rl.png")


if __name__ == "__main__":
    main()
