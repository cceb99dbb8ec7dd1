"""What composing policies costs per action chunk, and what a weight search costs in episodes.

    python benchmarks/compose_cost.py

Time per chunk, on flowrl's own small networks with random weights (a diffusion U-Net, a flow transformer, a flow U-Net, a diffusion U-Net
that predicts the action; chunks of 16 × 7 actions, 10 denoising steps):

- 1 to 4 members, against the members one after the other;
- 11 candidate weights of two members: one batch, against one call per weight;
- a member without weight, against a composition that lacks it, and against one that asks it;
- a member asked at every m-th step only;
- members of one architecture: called as one network (``vmap``), against in turn.

The ways of a comparison take turns in one process with one thread; ratios are taken within a turn.

Episodes of a search, by simulation on the closed-form success curves of the toy, all weights on common seeds: an
exhaustive grid, races, and grids that spend as much as a race: how often the choice lies within one point of the best weight, what
it truly succeeds at, and by how much its success on the selection seeds flatters it.

Writes ``benchmarks/results/compose_cost.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from turns import compare, machine, markdown_rows

from flowrl.shapes import seeded_generator
from robot.composition import Sampling
from robot.envs.toy import toy_success_rate
from robot.envs.toy_policy import ToyPolicy
from robot.gpc import GPCPolicy
from robot.learning.encoders import SensorStats, StateEncoder
from robot.learning.process import Diffusion, Flow
from robot.learning.transformer import ActionTransformer
from robot.learning.unet import ActionUNet
from robot.normalise import NormStats
from robot.policies import FlowPolicy
from robot.search.choice import best_candidate
from robot.search.racing import Exhaustive, Race, SuccessiveHalving, WilsonRace
from robot.search.simplex import lattice, uniform
from robot.types import ActionSpec, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from robot.learning.blocks import NetworkConfig
    from robot.policies import NetworkProcess

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/compose_cost.py"
HORIZON, DOF, STATE, STEPS = 16, 7, 20, 10
CAP = 200  # selection seeds of a search
FINDINGS = {"both decent": (0.25, -0.25), "one useless": (0.05, -1.0), "one stronger": (0.1, -0.3)}


# ------------------------------------------------------------------------------------------------------------------- time per chunk


def policies(count: int, *, alike: bool = False) -> tuple[FlowPolicy, ...]:
    """Policies with random weights: of four kinds, or diffusion U-Nets throughout."""
    kinds: list[tuple[NetworkProcess, NetworkConfig]] = [
        (Diffusion(), ActionUNet()),
        (Flow(), ActionTransformer()),
        (Flow(), ActionUNet()),
        (Diffusion(predict="sample"), ActionUNet()),
    ]
    return tuple(_policy(index, *kinds[0 if alike else index]) for index in range(count))


def _policy(index: int, process: NetworkProcess, network: NetworkConfig) -> FlowPolicy:
    stats = {"state": SensorStats(shape=(STATE,), low=-torch.ones(STATE), high=torch.ones(STATE))}
    torch.manual_seed(index)
    return FlowPolicy(
        encoder=StateEncoder(sensors=("state",)).build(stats),
        network=network.build(DOF, HORIZON, STATE).eval(),
        process=process,
        stats=NormStats(torch.zeros(DOF), torch.ones(DOF)),
        action=ActionSpec(names=tuple(f"a{dim}" for dim in range(DOF)), control_rate_hz=20),
        horizon=HORIZON,
        execute=8,
        sampling=Sampling(steps=STEPS),
        name=f"{type(process).__name__} {type(network).__name__} {index}",
    )


def composed(members: Sequence[FlowPolicy], weights: Sequence[float] = (), *, every: Sequence[int] = (), vmap: bool = False) -> GPCPolicy:
    """The members, with equal weights unless given."""
    chosen = tuple(weights) or uniform(len(members))
    return GPCPolicy(policies=tuple(members), weights=chosen, sampling=Sampling(steps=STEPS), every=tuple(every), vmap=vmap)


def observation(rows: int) -> Observation:
    """Something to look at."""
    return Observation({"state": torch.rand(rows, 1, STATE, generator=seeded_generator(1)) * 2 - 1})


def act(policy: GPCPolicy | FlowPolicy, rows: int) -> torch.Tensor:
    """One chunk per row, from the same noise whoever acts."""
    return policy.act(observation(rows), [seeded_generator(2, row) for row in range(rows)]).values


def act_weighted(policy: GPCPolicy, seeds: int, weights: torch.Tensor) -> torch.Tensor:
    """One chunk for each weight on each seed, in one call, ``(weight × seed, horizon, dof)``."""
    rows = weights.repeat_interleave(seeds, 0)
    seen = observation(seeds)[list(range(seeds)) * len(weights)]
    return policy.act(seen, [seeded_generator(2, row % seeds) for row in range(len(rows))], weights=rows).values


def act_singly(policy: GPCPolicy, seeds: int, weights: torch.Tensor) -> torch.Tensor:
    """The same, one call per weight."""
    return torch.cat([act_weighted(policy, seeds, row[None]) for row in weights])


def evaluations(policy: GPCPolicy, rows: int, weights: torch.Tensor | None = None) -> int:
    """Rows that the members' networks are asked about for one chunk each."""
    drawn = policy.composer.compose(
        (rows, HORIZON, DOF), steps=STEPS, generator=seeded_generator(3), condition=observation(rows), weights=weights
    )
    return sum(drawn.evaluations.values())


def members_cost(turns: int) -> list[dict[str, Any]]:
    """1 to 4 members, against each alone, one after the other."""
    rows = []
    for batch in (1, 16):
        for count in (1, 2, 3, 4):
            members = policies(count)
            policy = composed(members)
            ways: dict[str, Callable[[], object]] = {
                "composed": partial(act, policy, batch),
                "one by one": partial(_one_by_one, members, batch),
            }
            rows.append({"batch": batch, "members": count, "evaluations": evaluations(policy, batch)} | compare(ways, turns, "one by one"))
    return rows


def _one_by_one(members: Sequence[FlowPolicy], batch: int) -> None:
    for member in members:
        act(member, batch)


def batching_cost(turns: int) -> list[dict[str, Any]]:
    """11 weights of two members in one batch, against one call per weight."""
    policy, weights = composed(policies(2)), torch.tensor(lattice(2))
    rows = []
    for seeds in (1, 4):
        inner = (act_weighted(policy, seeds, weights) - act_singly(policy, seeds, weights))[seeds:-seeds]
        ways = {"batched": partial(act_weighted, policy, seeds, weights), "one by one": partial(act_singly, policy, seeds, weights)}
        asked = evaluations(policy, 11 * seeds, weights.repeat_interleave(seeds, 0))
        facts = {"seeds": seeds, "evaluations": asked, "largest difference": float(inner.abs().max())}
        rows.append(facts | compare(ways, turns, "one by one"))
    return rows


def zero_weight_cost(turns: int) -> dict[str, Any]:
    """Two members, one without weight."""
    members = policies(2)
    without = composed(members, (1.0, 0.0))
    ways = {
        "weights 1, 0": partial(act, without, 1),
        "first alone": partial(act, members[0], 1),
        "weights 0.5, 0.5": partial(act, composed(members), 1),
    }
    equal = torch.equal(act(without, 4), act(members[0], 4))
    return {"weights 1, 0 are the first alone, bit for bit": equal} | compare(ways, turns, "weights 0.5, 0.5")


def every_cost(turns: int) -> list[dict[str, Any]]:
    """The second member asked at every m-th step; and what that does to a law that is known."""
    made = {every: composed(policies(2), every=(1, every)) for every in (1, 2, 5)}
    times = compare({str(every): partial(act, policy, 1) for every, policy in made.items()}, turns, "1")
    rows = []
    for every, policy in made.items():
        toy = tuple(ToyPolicy(bias=bias).load() for bias in FINDINGS["one stronger"])
        exact = GPCPolicy(policies=toy, weights=(0.7, 0.3), sampling=Sampling(steps=50, clip=None), every=(1, every))
        drawn = exact.act(Observation({"target": torch.zeros(20_000, 1, 1)}), seeded_generator(4)).values
        law = {"toy mean": float(drawn.mean()), "toy std": float(drawn.std())}
        rows.append({"every": every, "evaluations": evaluations(policy, 1), **law, "asked so": times[str(every)]})
    return rows


def vmap_cost(turns: int) -> list[dict[str, Any]]:
    """Diffusion U-Nets of one architecture, as one network and in turn."""
    rows = []
    for batch in (1, 16):
        for count in (2, 4):
            members = policies(count, alike=True)
            one, turn = composed(members, vmap=True), composed(members)
            difference = float((act(one, batch) - act(turn, batch)).abs().max())
            ways = {"vmap": partial(act, one, batch), "in turn": partial(act, turn, batch)}
            rows.append({"batch": batch, "members": count, "largest difference": difference} | compare(ways, turns, "in turn"))
    return rows


# ------------------------------------------------------------------------------------------------------------- episodes of a search


def curve(name: str) -> NDArray[np.float64]:
    """True success of each weight."""
    first, second = FINDINGS[name]
    return np.array([toy_success_rate(w * first + (1 - w) * second) for w, _ in lattice(2)])


def simulate(name: str, race: Race, cap: int, repeats: int, seed: int) -> dict[str, float]:
    """Search so often, each time on new seeds; noise is common to all weights, as in a rollout."""
    truth, candidates = curve(name), lattice(2)
    bias = np.array([w * FINDINGS[name][0] + (1 - w) * FINDINGS[name][1] for w, _ in candidates])
    generator = np.random.default_rng(seed)
    episodes, chosen, shown = [], [], []
    for _ in range(repeats):
        outcomes = np.abs(bias[:, None] + 0.1 * generator.standard_normal(cap)) < 0.2  # noqa: PLR2004 - the toy's tolerance
        found = race.run(len(candidates), range(cap), partial(_look_up, outcomes))
        rates = [found.rates[index] for index in found.survivors]
        best = found.survivors[best_candidate([candidates[index] for index in found.survivors], rates)]
        episodes.append(found.episodes)
        chosen.append(truth[best])
        shown.append(found.rates[best])
    loss = truth.max() - np.array(chosen)
    return {
        "episodes": float(np.mean(episodes)),
        "within a point of the best": float((loss < 0.01).mean()),  # noqa: PLR2004
        "true success": float(np.mean(chosen)),
        "points lost": float(100 * loss.mean()),
        "points flattered": float(100 * (np.array(shown) - np.array(chosen)).mean()),
    }


def _look_up(outcomes: NDArray[np.bool_], candidates: Sequence[int], seeds: Sequence[int]) -> NDArray[np.bool_]:
    return outcomes[np.ix_(candidates, seeds)]


def search_cost(repeats: int) -> list[dict[str, Any]]:
    """Races against the grid with as many seeds, and against the grid with as many episodes."""
    races: dict[str, Race] = {
        "race of Wilson bounds, 95 %, batches of 20": WilsonRace(batch=20),
        "race of Wilson bounds, 99 %, batches of 20": WilsonRace(batch=20, confidence=0.99),
        "successive halving from 25": SuccessiveHalving(first=25),
    }
    rows = []
    for name in FINDINGS:
        rows.append({"curve": name, "search": f"grid, {CAP} seeds", **simulate(name, Exhaustive(), CAP, repeats, 0)})
        for title, race in races.items():
            found = simulate(name, race, CAP, repeats, 0)
            seeds = max(1, round(found["episodes"] / len(lattice(2))))
            rows.append({"curve": name, "search": title, **found})
            rows.append({"curve": name, "search": f"grid, {seeds} seeds: the same cost", **simulate(name, Exhaustive(), seeds, repeats, 1)})
    return rows


# ---------------------------------------------------------------------------------------------------------------------------- output


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    before, after = (result["load_average"][when][0] for when in ("before", "after"))
    lines = ["# Cost of composing policies and of searching their weights", "", f"`{COMMAND}`", ""]
    lines.append(f"{result['machine']}; load average {before:.1f} before, {after:.1f} after.")
    lines.append(
        f"Chunks of {HORIZON} × {DOF} actions, {STEPS} steps. Median [least, most] of {result['turns']} turns; ratios within a turn."
    )
    sections = {
        "Members": ("members", "Against the members alone, one after the other; evaluations: rows asked of any network."),
        "Candidate weights": ("batching", "11 weights of two members, on so many seeds each; at 0 and 1 one member is not asked."),
        "A member without weight": ("zero_weight", ""),
        "A member asked at every m-th step": ("every", "Beside it the law of the toy, 50 steps: it should be N(−0.02, 0.1²)."),
        "One architecture": ("vmap", "Diffusion U-Nets called as one network, against in turn."),
        f"Episodes of a search over 11 weights, {result['repeats']} simulated searches": ("search", ""),
    }
    for title, (key, note) in sections.items():
        lines += ["", f"## {title}", "", *([note, ""] if note else []), *markdown_rows(result[key])]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=2000, help="simulated searches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before, turns = os.getloadavg(), arguments.turns
    result: dict[str, Any] = {
        "command": COMMAND,
        "turns": turns,
        "repeats": arguments.repeats,
        "members": members_cost(turns),
        "batching": batching_cost(turns),
        "zero_weight": zero_weight_cost(turns),
        "every": every_cost(turns),
        "vmap": vmap_cost(turns),
        "search": search_cost(arguments.repeats),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compose_cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "compose_cost.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
