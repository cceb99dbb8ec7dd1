"""Does a learned schedule of noise per predicted latent beat those made by hand, at equal evaluations of the network?

    python benchmarks/noisegate.py --task pusht             # about an hour on a quiet core; beside it
    python benchmarks/noisegate.py --task metaworld_push
    python benchmarks/noisegate.py --report                 # joins what the tasks wrote; also with half of it there

For each task a world-action model is trained by the config's own command unless it is there. Then

1. every hand-made schedule plays the selection seeds; the one with the highest primary measure is the best hand-made;
2. gates are trained, with several training seeds and the same number of episodes each: ``constants`` (one multiplier per latent, an
   evolution strategy), ``gate`` (what is tried is kept for the episode, antithetic pairs, graded reward, from the shared schedule on),
   ``gate, plain`` (as in the paper: fresh noise at each step, success alone), ``gate, warm`` (``gate`` from the constants of the same
   training seed on) and ``gate, fast`` (``gate`` at four times the learning rate);
3. all of them play the report seeds, from the same initial states and the same noise;
4. attention to predicted frames is cut, to see whether a frame at time 1 is as good as none.

Every episode is written to ``runs/noisegate/TASK.jsonl`` as it ends; a run that was stopped goes on where it was. ``--report`` writes
``benchmarks/results/noisegate.jsonl``, ``.md`` and ``.png``, and ``docs/pictures/learned_schedules.png``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noisegate_report import write_report
from noisegate_tasks import LEARNED, TASKS, Task, backbone, hand_made
from turns import compare

from flowrl.shapes import seeded_generator
from flowrl.train import AdamW
from flowrl.train.describe import describe
from flowrl.train.metrics import METRICS_FILE, read_metrics
from robot import (
    ConstantGateConfig,
    GateTraining,
    NoiseGateConfig,
    Observation,
    PerTokenSchedule,
    WorldActionFile,
    WorldActionModel,
)
from robot.evaluation import EnvPool, Job, run_episodes
from robot.gating import OutcomeReward, multiplier
from robot.gating.file import GATES, load_gate, model_fingerprint
from robot.gating.watch import Watch
from robot.noise_gate import ConstantGate
from robot.world.denoising import Denoising

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.evaluation import EpisodeResult
    from robot.gating.gate import GateConfig
    from robot.world.denoising import Schedule

RESULTS = Path(__file__).parent / "results" / "noisegate"
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "learned_schedules.png"
TRAINING_SEEDS, SELECTION_FROM, REPORT_FROM = "1000:100000", 200_000, 300_000
LATENCY_TURNS, MOST_COMPARED, FEW = 20, 20, 8
SUCCESS_ALONE = OutcomeReward()


class Part:
    """What a task has found so far: lines of JSON, each on disk before the next thing begins."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was cut off is dropped."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        self.lines: list[dict[str, Any]] = [json.loads(text) for text in whole.splitlines()]
        self.episodes = {(line["stage"], line["arm"], line["seed"]) for line in self.lines if line["kind"] == "episode"}

    def write(self, **line: Any) -> None:
        """Append a line."""
        self.lines.append(line)
        if line["kind"] == "episode":
            self.episodes.add((line["stage"], line["arm"], line["seed"]))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, **wanted: Any) -> bool:
        """Whether there is a line with these values."""
        return any(all(line.get(name) == value for name, value in wanted.items()) for line in self.lines)

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse to go on with other settings.

        Raises:
            SystemExit: If the part was written with others.
        """
        settings = json.loads(json.dumps(settings))
        found = next((line["settings"] for line in self.lines if line["kind"] == "task"), None)
        if found is None:
            self.write(kind="task", settings=settings)
        elif other := [name for name in settings if found.get(name) != settings[name]]:
            raise SystemExit(f"{self.path} was written with another {', '.join(other)}; remove it and its folder, or choose another --root")


@dataclass(kw_only=True, eq=False)
class CutBeside:
    """The masked schedule; beside each of the first chunks it draws what the actions are with and without attention to the frames.

    Attributes:
        table: The schedule.
        model: Whose actions attend to all frames.
        squares: Mean squared differences, of actions in normalised units: cut against whole, and whole against whole from other noise.
    """

    table: PerTokenSchedule
    model: WorldActionModel
    squares: list[tuple[float, float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.table.steps

    def next(self, state: Denoising) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`robot.world.denoising.Schedule`."""
        if state.step == 0 and len(self.squares) < MOST_COMPARED:
            other = state.layout.noise(len(state), seeded_generator(len(self.squares)))
            whole, elsewhere = (self._actions(self.model, state, x) for x in (state.x, other))
            cut = self._actions(without_frames(self.model), state, state.x)
            self.squares.append((float((cut - whole).square().mean()), float((elsewhere - whole).square().mean())))
        return self.table.next(state)

    def _actions(self, model: WorldActionModel, state: Denoising, x: torch.Tensor) -> torch.Tensor:
        run = Denoising(model.field(), state.layout, state.condition, x).follow(self.table)
        return run.actions.clamp(-1, 1)


def without_frames(model: WorldActionModel) -> WorldActionModel:
    """The same model, whose actions do not attend to predicted frames."""
    return replace(model, hidden=torch.ones(model.layout.frames, dtype=torch.bool))


@dataclass(kw_only=True)
class Bench:
    """One task's measurements.

    Attributes:
        name: Of the task.
        task: What it is.
        args: Of the command line.
        part: Where everything is written.
        model: The world-action model;
        path: where it lies.
    """

    name: str
    task: Task
    args: argparse.Namespace
    part: Part
    model: WorldActionModel
    path: Path

    @property
    def tables(self) -> dict[str, PerTokenSchedule]:
        """The hand-made schedules."""
        return hand_made(self.task.steps, self.model.layout.frames)

    def run(self) -> None:
        """Everything that is not there yet; what tells most first."""
        selection = range(SELECTION_FROM, SELECTION_FROM + self.args.select)
        report = range(REPORT_FROM, REPORT_FROM + self.args.episodes)
        with self.pool() as pool:
            for stage, seeds in (("selection", selection), ("report", report)):
                for arm, table in self.tables.items():
                    self.play(pool, (stage, arm), table, seeds)
            self.cut_attention(pool, report)
        for seed in range(self.args.seeds):
            gates = {f"{name} {seed}": self.train(name, seed) for name in LEARNED}
            with self.pool() as pool:
                for arm, path in gates.items():
                    self.play(pool, ("report", arm), load_gate(path), report)
        self.latency()

    def pool(self) -> EnvPool:
        """Environments; closed while a gate trains in its own."""
        return EnvPool(self.task.env, rows=self.args.rows, workers=self.args.workers)

    def play(self, pool: EnvPool, place: tuple[str, str], schedule: Schedule, seeds: Sequence[int], *, cut: bool = False) -> None:
        """The episodes of an arm that are missing, and what its schedule did meanwhile."""
        stage, arm = place
        missing = [seed for seed in seeds if (stage, arm, seed) not in self.part.episodes]
        if not missing and self.part.has(kind="arm", stage=stage, arm=arm):
            return

        def note(result: EpisodeResult) -> None:
            if (stage, arm, result.seed) not in self.part.episodes:
                self.part.write(kind="episode", stage=stage, **result.to_json())

        watch, model = Watch(schedule=schedule), without_frames(self.model) if cut else self.model
        jobs = [Job(seed=seed, arm=arm) for seed in missing or list(seeds)[:FEW]]
        results = run_episodes(pool, model.with_schedule(watch), jobs, on_episode=note)
        tally = watch.tally
        self.part.write(kind="arm", stage=stage, arm=arm, times=watch.times, per_chunk=tally.per(tally.chunks))
        print(f"{self.name}: {stage}, {arm}: {sum(result.success for result in results)} of {len(results)} solved", flush=True)

    def cut_attention(self, pool: EnvPool, seeds: Sequence[int]) -> None:
        """Whether a frame at time 1 is as good as none."""
        beside = CutBeside(table=self.tables["masked"], model=self.model)
        self.play(pool, ("attention cut", "masked"), beside, seeds, cut=True)
        if beside.squares:
            cut, elsewhere = torch.tensor(beside.squares, dtype=torch.float64).mean(0).sqrt().tolist()
            self.part.write(kind="attention", cut=cut, other_noise=elsewhere)

    def train(self, name: str, seed: int) -> Path:
        """The gate's file; trained unless it is there."""
        job = self.job(name, seed)
        arm, metrics = f"{name} {seed}", job.folder / METRICS_FILE
        done = metrics.exists() and any(line.get("update") == job.updates - 1 for line in read_metrics(metrics))
        if not (done and (job.folder / GATES.name).is_file()):
            job.run(resume=True)
        if not self.part.has(kind="training", arm=arm):
            self.part.write(kind="training", arm=arm, **_learning(list(read_metrics(metrics))), **_constants(job.folder))
        return job.folder / GATES.name

    def job(self, name: str, seed: int) -> GateTraining:
        """The training of a gate."""
        args, way = self.args, LEARNED[name]
        kind: type[ConstantGateConfig | NoiseGateConfig] = ConstantGateConfig if way.constants else NoiseGateConfig
        gate: GateConfig = kind(steps=self.task.steps)
        return GateTraining(
            run_dir=str(self.folder(name, seed)),
            model=WorldActionFile(path=str(self.path)),
            env=self.task.env,
            gate=gate,
            seeds=TRAINING_SEEDS,
            groups=args.groups,
            group_size=args.group_size,
            updates=args.updates,
            reward=self.task.graded if way.graded else SUCCESS_ALONE,
            hold=way.hold,
            antithetic=way.antithetic,
            start=tuple(_constants(self.folder("constants", seed))["constants"]) if way.warm else None,
            optimizer=AdamW(lr=way.lr, weight_decay=0.0),
            evaluation_seeds=None,
            rows=args.rows,
            workers=args.workers,
            seed=seed,
        )

    def folder(self, name: str, seed: int) -> Path:
        """Of a gate's training."""
        return Path(self.args.root) / self.name / f"{name.replace(', ', '_')}_{seed}"

    def latency(self) -> None:
        """Milliseconds a chunk at batch 1, every arm against the shared schedule within a turn."""
        if self.part.has(kind="latency"):
            return
        env = self.task.env.make()
        frame = env.reset(seed=SELECTION_FROM)[0]
        env.close()
        frames = {name: torch.as_tensor(frame[name])[None, None].float() for name in self.model.sensors}
        seen = Observation({name: shown.repeat_interleave(self.model.history, dim=1) for name, shown in frames.items()})
        gates: Mapping[str, Schedule] = {name: load_gate(self.folder(name, 0) / GATES.name) for name in LEARNED if self.args.seeds}
        models = {arm: self.model.with_schedule(schedule) for arm, schedule in {**self.tables, **gates}.items()}
        ways = {arm: partial(model.act, seen, seeded_generator(0)) for arm, model in models.items()}
        timed = compare(ways, LATENCY_TURNS, "shared")
        self.part.write(
            kind="latency",
            ms={arm: found["ms"] for arm, found in timed.items()},
            ratio={arm: found["ratio to shared"] for arm, found in timed.items()},
        )


def _learning(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The learning curve, and where it ended."""
    train = [line for line in lines if line["kind"] == "train"]
    last = torch.tensor([line["multiplier"] for line in train[-5:]], dtype=torch.float64).mean(0).tolist()
    curves = {name: [line[name] for line in train] for name in ("reward", "success", "informative")}
    return {**curves, "multiplier": last, "episodes": train[-1]["episodes"], "seconds": train[-1]["seconds"]}


def _constants(folder: Path) -> dict[str, list[float]]:
    """The multipliers of a gate that has but one per latent."""
    gate = load_gate(folder / GATES.name)
    return {"constants": multiplier(gate.mean.detach().double()).tolist()} if isinstance(gate, ConstantGate) else {}


def measure(name: str, args: argparse.Namespace) -> None:
    """Run a task."""
    task = TASKS[name]
    if args.max_steps:
        task = replace(task, env=replace(task.env, max_steps=args.max_steps))
    path = backbone(task, args.backbone, Path(args.root) / name)
    model = WorldActionFile(path=str(path)).load()
    part = Part(Path(args.root) / f"{name}.jsonl")
    part.check(
        {
            "title": task.title,
            "primary": task.primary,
            "steps": task.steps,
            "execute": model.execute,
            "stride": model.stride,
            "env": describe(task.env),
            "graded": describe(task.graded),
            "model": model_fingerprint(model),
            "groups": args.groups,
            "group_size": args.group_size,
            "updates": args.updates,
        }
    )
    Bench(name=name, task=task, args=args, part=part, model=model, path=path).run()


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, action="append", help="to measure (default: the first two, then the report)")
    parser.add_argument("--report", action="store_true", help="write the report")
    numbers = {"groups": 8, "group-size": 8, "updates": 25, "seeds": 3, "select": 200, "episodes": 200, "rows": 32, "workers": 0}
    for number, default in numbers.items():
        parser.add_argument(f"--{number}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--root", default="runs/noisegate", help="where parts and gates are written")
    parser.add_argument("--backbone", help="a world_action.safetensors instead of the config's")
    parser.add_argument("--max-steps", type=int, help="of an episode, instead of the task's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the report, without suffix")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="of the learned schedules")
    args = parser.parse_args()
    torch.set_num_threads(1)
    whole = not (args.task or args.report)
    for name in args.task or (list(TASKS)[:2] if whole else []):
        measure(name, args)
    if args.report or whole:
        write_report(Path(args.root), list(TASKS), args.out, args.picture)


if __name__ == "__main__":
    main()
