"""What a reward server does with one client and with eight, what each wire format costs, and what overlap with the rollout gains.

    python benchmarks/reward_server.py

- Throughput: a server process on loopback, client processes that score 4 pictures of 64 x 64 a request, one request after another. The
  same is done by a server that scores every request apart (``batch: 4``). Two rewards: ``waiting``, which only waits, 20 ms a call and
  1 ms a picture, as for a network on a GPU elsewhere; and `rewards.Legibility`, a real network so small that all is overhead.
- Wire formats: 8 pictures (photographs) of 512 x 512: bytes, time to write and to read them, a whole request on loopback, and how far
  the scores of brightness and of JPEG size (kB) move.
- Overlap: updates of ``configs/rewards/digits_remote.yaml`` with 8 prompts and 8 steps, whose server waits 5 ms a picture before it scores
  legibility; the rollout in 1, 2 and 4 parts, against the same reward in the trainer's process.

Writes ``benchmarks/results/reward_server.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from turns import compare, machine, markdown_rows, spread

from flowrl.config import instantiate, load_config
from flowrl.rl import Reward, RewardBatch
from flowrl.train.metrics import read_metrics
from rewards import Brightness, CompositeReward, JpegCompressibility, Legibility, RemoteReward
from rewards.known_pictures import photographs
from rewards.remote.limits import Limits
from rewards.remote.wire import Question, WireFormat, pack_question, unpack_question
from rewards.server import RewardServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/reward_server.py"
PER_REQUEST, CLIENTS, SECONDS = 4, (1, 8), 6.0
WIRES: tuple[WireFormat, ...] = ("float32", "float16", "uint8", "png")
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Waits as for a GPU elsewhere, then scores.

    Attributes:
        reward: What scores.
        call_s: Of a call.
        picture_s: Of a picture in it.
    """

    reward: Reward
    call_s: float
    picture_s: float

    @property
    def weights(self) -> Mapping[str, float]:
        """The inner reward's."""
        return self.reward.weights

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Wait, then score."""
        time.sleep(self.call_s + self.picture_s * len(prompts))
        return self.reward(samples, prompts)


@contextmanager
def serving(reward: Reward, **fields: Any) -> Iterator[str]:
    """A server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = FORK.Process(target=RewardServer(reward=reward, port=port, self_test=False, **fields).run)
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        RemoteReward(servers=(url,), weights=dict(reward.weights), backoff_s=0.05).check()
        yield url
    finally:
        os.kill(int(process.pid or 0), signal.SIGTERM)
        process.join()


# ------------------------------------------------------------------------------------------------------------ throughput


def throughput(reward: Reward, clients: int, batch: int) -> float:
    """Pictures a second of so many clients together."""
    with serving(reward, batch=batch) as url:
        start, counts = FORK.Barrier(clients), FORK.Queue()
        remote = RemoteReward(servers=(url,), weights=dict(reward.weights), wire="uint8")
        workers = [FORK.Process(target=_ask_on, args=(remote, start, counts, seed)) for seed in range(clients)]
        for worker in workers:
            worker.start()
        done = sum(counts.get() for _ in workers)
        for worker in workers:
            worker.join()
    return done / SECONDS


def _ask_on(remote: RemoteReward, start: Any, counts: Any, seed: int) -> None:
    pictures = torch.rand(PER_REQUEST, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    remote(pictures, ["a five"] * PER_REQUEST)  # the connection and the first check
    start.wait()
    until, done = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        if not bool(remote(pictures, ["a five"] * PER_REQUEST).stack(list(remote.weights)).isfinite().all()):
            raise RuntimeError("a score is missing")
        done += PER_REQUEST
    counts.put(done)


def throughputs(turns: int) -> list[dict[str, Any]]:
    """A row for every reward and server; the turns alternate between one client and eight."""
    rows = []
    legibility = Legibility()
    for name, reward in (("waiting", Waiting(reward=Brightness(), call_s=0.02, picture_s=0.001)), ("legibility", legibility)):
        for batch, title in ((64, "requests together"), (PER_REQUEST, "requests apart")):
            taken = [[throughput(reward, clients, batch) for clients in CLIENTS] for _ in range(turns)]
            one, eight = zip(*taken, strict=True)
            ratio = spread([b / a for a, b in taken])
            rows.append(
                {
                    "reward": name,
                    "scored": title,
                    "1 client, pictures/s": spread(one),
                    "8 clients, pictures/s": spread(eight),
                    "ratio": ratio,
                }
            )
    return rows


# ---------------------------------------------------------------------------------------------------------- wire formats


def wire_formats(turns: int, side: int = 512) -> list[dict[str, Any]]:
    """A row for every format."""
    pictures = photographs(side)[torch.arange(8) % 3]
    question = Question(samples=pictures, prompts=["a"] * 8, groups=torch.arange(8))
    reward = CompositeReward(rewards=(Brightness(), JpegCompressibility()))
    noisy = (pictures + 0.3 / 255 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    exact = reward(noisy, ["a"] * 8).parts
    bodies = {wire: pack_question(question, wire) for wire in WIRES}
    packing = compare({wire: lambda wire=wire: pack_question(question, wire) for wire in WIRES}, turns, "float32")  # type: ignore[misc]
    reading = compare({wire: lambda wire=wire: unpack_question(bodies[wire], Limits()) for wire in WIRES}, turns, "float32")  # type: ignore[misc]
    with serving(Brightness()) as url:
        clients = {wire: RemoteReward(servers=(url,), weights={"brightness": 1.0}, wire=wire) for wire in WIRES}
        asking = compare({wire: lambda wire=wire: clients[wire](pictures, ["a"] * 8) for wire in WIRES}, turns, "float32")  # type: ignore[misc]
    rows = []
    for wire in WIRES:
        sent = unpack_question(pack_question(replace(question, samples=noisy), wire), Limits()).samples
        moved = {name: float((part - exact[name]).abs().max()) for name, part in reward(sent, ["a"] * 8).parts.items()}
        times = {"write, ms": packing[wire]["ms"], "read, ms": reading[wire]["ms"], "request, ms": asking[wire]["ms"]}
        rows.append(
            {"wire": wire, "MB": len(bodies[wire]) / 1e6, **times, **{f"{name} moves by": f"{value:.1e}" for name, value in moved.items()}}
        )
    return rows


# --------------------------------------------------------------------------------------------------------------- overlap


def overlaps(turns: int, updates: int = 5) -> list[dict[str, Any]]:
    """A row for every way of scoring: seconds of an update, and of it those spent waiting for scores."""
    reward = Waiting(reward=Legibility(), call_s=0.0, picture_s=0.005)
    with serving(reward, batch=64) as url, tempfile.TemporaryDirectory(prefix="flowrl-") as folder:
        changes = ["evaluation=null", "trackers=[]", f"updates={updates}", f"run_dir={folder}/run", "reward_batch=16"]
        changes += ["prompts_per_update=8", "sampler.grid.steps=8"]
        trainer = instantiate(load_config("rewards/digits_remote", changes))
        remote = RemoteReward(servers=(url,), weights={"legibility": 1.0})
        ways = {"in the trainer": replace(trainer, reward=reward, rollout_parts=1)}
        ways |= {f"server, {parts} parts": replace(trainer, reward=remote, rollout_parts=parts) for parts in (1, 2, 4)}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name, way in ways.items():
                run = Path(folder) / f"{name}_{turn}".replace(" ", "_")
                replace(way, run_dir=str(run)).run()
                taken[name].append(_update_seconds(run))
    base = [seconds for seconds, _ in taken["in the trainer"][1:]]
    return [
        {
            "scored": name,
            "s an update": spread([seconds for seconds, _ in values[1:]]),
            "of it waiting": spread([waited for _, waited in values[1:]]),
            "ratio to in the trainer": spread([seconds / b for (seconds, _), b in zip(values[1:], base, strict=True)]),
        }
        for name, values in taken.items()
    ]


def _update_seconds(run: Path) -> tuple[float, float]:
    """Median seconds of an update, and of waiting for scores in it; the first update, which also checks the ratio, is left out."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"][1:]
    phases = ("seconds_rollout", "seconds_reward", "seconds_update")
    return statistics.median(sum(line[p] for p in phases) for line in lines), statistics.median(line["seconds_reward"] for line in lines)


def report(result: Mapping[str, Any]) -> str:
    """The results as a page."""
    load = result["load_average"]
    return "\n".join(
        [
            "# Reward server",
            "",
            f"`{COMMAND}`",
            "",
            f"Loopback; {result['machine']}, shared with other jobs:",
            f"load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after.",
            f"Median [least, most] of {result['turns']} turns. What is measured: the first lines of the script.",
            "",
            "Throughput with one client and with eight, 4 pictures a request:",
            "",
            *markdown_rows(result["throughput"]),
            "",
            "Wire formats, 8 pictures of 512 x 512 a request:",
            "",
            *markdown_rows(result["wire"]),
            "",
            "Overlap of scoring with the rollout:",
            "",
            *markdown_rows(result["overlap"]),
            "",
        ]
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()
    result: dict[str, Any] = {
        "command": COMMAND,
        "turns": arguments.turns,
        "machine": machine(),
        "throughput": throughputs(arguments.turns),
        "wire": wire_formats(arguments.turns),
        "overlap": overlaps(arguments.turns),
        "load_average": {"before": before, "after": os.getloadavg()},
    }
    (RESULTS / "reward_server.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "reward_server.md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
