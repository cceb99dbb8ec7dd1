"""For which pairs of policies does composition help? Parents and composition on the same 200 report seeds, pair by pair.

    python benchmarks/compose_pairs.py                      # all pairs, training seed 0: half an hour on two quiet cores
    python benchmarks/compose_pairs.py two_cameras --seed 1

Meta-World's push with two cameras that each err along their own line of sight (see configs/robot/compose_push.yaml), and robosuite's Lift.
Every pair: demonstrations are recorded, two policies trained, the weight of the first chosen among 0, 0.25 … 1 on 100 seeds, and everything
compared on 200 others (exact McNemar, Newcombe's interval). Adds a line to ``benchmarks/results/compose_pairs.jsonl`` and writes
``compose_pairs.md`` from all lines.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.config import instantiate, load_config
from flowrl.train import AdamW
from robot.demonstrations import RobomimicHDF5
from robot.gpc import Composition, MemberConfig
from robot.learning import ActionMLP, BehaviourCloning, Diffusion, Flow, PolicyFile, Process, StateEncoder
from robot.search import WeightSearch

if TYPE_CHECKING:
    from robot.envs.base import EnvSource
    from robot.search.results import CompositionResult

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/compose_pairs")
COMMAND = "python benchmarks/compose_pairs.py"
PUSH, LIFT = ("proprioception", "goal"), ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A policy to train.

    Attributes:
        name: For the table.
        process: What it learns.
        recording: Config of its demonstrations.
        sensors: What it sees.
        demonstrations: How many of them; None for all.
    """

    name: str
    process: Process
    recording: str
    sensors: tuple[str, ...]
    demonstrations: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two parents and what is asked of them.

    Attributes:
        question: Which of the paper's findings it probes.
        parents: First and second.
        selection: Seeds to choose the weight on.
        report: Seeds to compare on.
        horizon: Of a chunk.
        execute: Actions of a chunk to execute.
        env: Config of the search or recording whose environment it is.
        overrides: Of that config.
        rows: Environments side by side; those of robosuite take 120 MB each.
    """

    question: str
    parents: tuple[Parent, Parent]
    selection: str = "30000:30100"
    report: str = "40000:40200"
    horizon: int = 12
    execute: int = 6
    env: str = "robot/compose_push"
    overrides: tuple[str, ...] = field(default_factory=tuple)
    rows: int = 100


def _camera(name: str, process: Process, side: str, demonstrations: int | None = None, recording: str | None = None) -> Parent:
    sensors = (*PUSH, f"{side}_camera" if side in ("front", "side") else side)
    return Parent(
        name=name, process=process, recording=f"robot/push_record_{recording or side}", sensors=sensors, demonstrations=demonstrations
    )


PAIRS = {
    "two_cameras": Pair(
        question="different sensors, different kinds: each parent lacks what the other has",
        parents=(_camera("diffusion, front camera", Diffusion(), "front"), _camera("flow, side camera", Flow(), "side")),
    ),
    "two_cameras_one_kind": Pair(
        question="different sensors, one kind",
        parents=(_camera("flow, front camera", Flow(), "front"), _camera("flow, side camera", Flow(), "side")),
    ),
    "one_camera": Pair(
        question="one sensor, whose error both parents share; different kinds and demonstrations",
        parents=(
            _camera("diffusion, front camera", Diffusion(), "front"),
            _camera("flow, front camera", Flow(), "front", recording="side"),
        ),
    ),
    "weak_partner": Pair(
        question="one parent knows two demonstrations only (finding 2: no gain)",
        parents=(_camera("diffusion, front camera", Diffusion(), "front"), _camera("flow, two demonstrations", Flow(), "side", 2)),
    ),
    "few_demonstrations": Pair(
        question="no sensor error; five demonstrations each, disjoint",
        parents=(
            _camera("diffusion, 5 demonstrations", Diffusion(), "object", 5, "front"),
            _camera("flow, 5 others", Flow(), "object", 5, "side"),
        ),
    ),
    "lift": Pair(
        question="Lift from state, 20 demonstrations each, disjoint: two good parents",
        parents=(
            Parent(name="diffusion, 20 demonstrations", process=Diffusion(), recording="lift_first", sensors=LIFT, demonstrations=20),
            Parent(name="flow, 20 others", process=Flow(), recording="lift_second", sensors=LIFT, demonstrations=20),
        ),
        horizon=16,
        execute=8,
        env="robot/record_lift",
        overrides=("env.max_steps=120",),
        rows=8,
    ),
}
LIFT_RECORDINGS = {"lift_first": "0:40", "lift_second": "1000:1040"}


def demonstrations(parent: Parent) -> RobomimicHDF5:
    """The parent's demonstrations, recorded unless they are there."""
    path = RUNS / "demonstrations" / f"{parent.recording.rpartition('/')[2]}.hdf5"
    if not path.is_file():
        overrides = [f"out={path}"]
        if parent.recording in LIFT_RECORDINGS:
            overrides += [f"seeds='{LIFT_RECORDINGS[parent.recording]}'", "enough=20", "action_noise=0.1"]
        recording = "robot/record_lift" if parent.recording in LIFT_RECORDINGS else parent.recording
        instantiate(load_config(recording, overrides)).run(resume=True)
    return RobomimicHDF5(path=path, sensors=parent.sensors, limit=parent.demonstrations)


def trained(parent: Parent, pair: Pair, folder: Path, seed: int) -> PolicyFile:
    """The parent's policy, trained unless it is there."""
    run_dir = folder / parent.name.replace(", ", "_").replace(" ", "_")
    if not (run_dir / "policy.safetensors").is_file():
        BehaviourCloning(
            run_dir=str(run_dir),
            name=parent.name,
            demonstrations=demonstrations(parent),
            process=parent.process,
            encoder=StateEncoder(sensors=parent.sensors),
            network=ActionMLP(width=192, layers=2),
            horizon=pair.horizon,
            execute=pair.execute,
            steps=5000,
            batch_size=256,
            optimizer=AdamW(lr=2.0e-3, schedule="cosine", warmup_steps=100),
            validation_share=0.0,
            seed=seed,
        ).run(resume=True)
    return PolicyFile(path=str(run_dir))


def measure(name: str, seed: int) -> CompositionResult:
    """Train the pair, choose the weight, report."""
    pair, folder = PAIRS[name], RUNS / f"{name}_{seed}"
    members = tuple(MemberConfig(policy=trained(parent, pair, folder, seed), weight=0.5) for parent in pair.parents)
    env: EnvSource = instantiate(load_config(pair.env, list(pair.overrides))).env
    return WeightSearch(
        env=env,
        composition=Composition(members=members),
        run_dir=folder / "search",
        selection_seeds=pair.selection,
        report_seeds=pair.report,
        step=0.25,
        rows=pair.rows,
    ).run(resume=True)


def line(name: str, seed: int, result: CompositionResult) -> dict[str, Any]:
    """What the table needs."""
    arms: list[dict[str, Any]] = [
        {"role": row.arm.role, "weights": list(row.arm.weights), "successes": row.summary.successes, "episodes": row.summary.episodes}
        | {
            "rate": row.rate,
            "interval": list(row.interval),
            "against_best_parent": None if row.against is None else asdict(row.against),
        }
        for row in result.outcomes
    ]
    selection = result.selection
    curve = [] if selection is None else [[row.weights[0], row.successes, row.trials] for row in selection.candidates]
    parents = [parent.name for parent in PAIRS[name].parents]
    return {"pair": name, "parents": parents, "training_seed": seed, "weight": result.weights[0], "arms": arms, "selection": sorted(curve)}


def table(lines: list[dict[str, Any]]) -> str:
    """Everything that was measured, in Markdown."""
    rows = ["| pair | training seed | first | second | composed (first's weight) | against best parent | averaged | SDE parents |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for found in lines:
        arms: dict[str, list[dict[str, Any]]] = {}
        for arm in found["arms"]:
            arms.setdefault(arm["role"], []).append(arm)
        composed = arms.get("composed", [None])[0]
        cells = [found["pair"].replace("_", " "), str(found["training_seed"])]
        cells += [_rate(arm) for arm in sorted(arms["parent"], key=lambda arm: -arm["weights"][0])]
        cells += [f"{_rate(composed)} ({found['weight']:g})" if composed else f"a parent was chosen ({found['weight']:g})"]
        cells += [_difference(composed) if composed else "–"]
        cells += ["; ".join(_rate(arm) for arm in arms.get(role, [])) or "–" for role in ("average", "sde")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _rate(arm: dict[str, Any]) -> str:
    low, high = arm["interval"]
    return f"{arm['rate']:.3f} [{low:.3f}, {high:.3f}]"


def _difference(arm: dict[str, Any]) -> str:
    found = arm["against_best_parent"]
    return (
        f"{100 * found['difference']:+.1f} points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}], Holm p = {found['p_holm']:.2g}"
    )


def write_table(path: Path) -> None:
    """Write the Markdown beside the lines."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda found: (list(PAIRS).index(found["pair"]), found["training_seed"]))
    questions = "\n".join(
        f"- **{name.replace('_', ' ')}**: {' + '.join(parent.name for parent in pair.parents)}. {pair.question}."
        for name, pair in PAIRS.items()
    )
    curves = "\n".join(
        f"- {found['pair'].replace('_', ' ')}, training seed {found['training_seed']}: "
        + ", ".join(f"{weight:g}: {successes}/{trials}" for weight, successes, trials in found["selection"])
        for found in lines
    )
    text = (
        f"# For which pairs does composition help?\n\n`{COMMAND}`; success on 200 report seeds with 95 % Wilson intervals, differences "
        f"paired (Newcombe, exact McNemar, Holm over the table of the pair).\n\n{questions}\n\n{table(lines)}\n\n"
        f"Successes on the selection seeds by the first policy's weight (a race drops what cannot win any more):\n\n{curves}\n"
    )
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"which of {', '.join(PAIRS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "compose_pairs.jsonl"
    for name in args.pairs or PAIRS:
        found = line(name, args.seed, measure(name, args.seed))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        write_table(path)


if __name__ == "__main__":
    main()
