"""How much longer an update takes than the network calls, decodes and reward calls that it cannot do without.

    python benchmarks/update_overhead.py

A short G²RPO run on the embedded digits model records every call of the network (with its inputs), of the decoder and of the reward.
The same calls are then made bare, one after another, in the same process, and the two times are compared. Times are CPU seconds of one
thread, which other jobs hardly disturb; a run of one update is taken off both sides, so that set-up and checkpoints do not count. Writes
``benchmarks/results/update_overhead.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowrl.config import instantiate, load_config
from flowrl.models import ModelSource
from flowrl.rl import Reward

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from flowrl.models import ImageModel
    from flowrl.rl import RewardBatch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Calls:
    """What one update called, as functions that make the same calls again."""

    network: list[Callable[[], Any]] = field(default_factory=list)
    training: list[Callable[[], Any]] = field(default_factory=list)
    decode: list[Callable[[], Any]] = field(default_factory=list)
    reward: list[Callable[[], Any]] = field(default_factory=list)

    def seconds(self) -> dict[str, float]:
        """Make all calls again and time them by kind."""
        return {name: _timed(calls) for name, calls in vars(self).items()}


def _timed(calls: Sequence[Callable[[], Any]]) -> float:
    start = time.process_time()
    for call in calls:
        call()
    return time.process_time() - start


@dataclass(frozen=True)
class RecordingSource:
    """A model source whose model notes its calls."""

    inner: ModelSource
    calls: Calls = field(compare=False)

    def load(self, device: torch.device | str) -> ImageModel:
        """The inner model, listened to."""
        model = self.inner.load(device)
        network, decode = model.module, model.decode

        def on_forward(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                self.calls.training.append(lambda: network.forward(*args, **kwargs)[0].sum().backward())
            else:
                self.calls.network.append(lambda: torch.no_grad()(network.forward)(*args, **kwargs))

        def recorded_decode(latents: Tensor) -> Tensor:
            self.calls.decode.append(lambda: decode(latents))
            return decode(latents)

        network.register_forward_pre_hook(on_forward, with_kwargs=True)
        model.decode = recorded_decode  # type: ignore[method-assign]
        return model


@dataclass(frozen=True)
class RecordingReward:
    """A reward that notes its calls."""

    inner: Reward
    calls: Calls = field(compare=False)

    @property
    def weights(self) -> Mapping[str, float]:
        """The inner reward's."""
        return self.inner.weights

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """The inner reward's scores."""
        self.calls.reward.append(lambda: torch.no_grad()(self.inner)(samples, prompts))
        return self.inner(samples, prompts)


def measure(config: str, updates: int) -> dict[str, float]:
    """One run and one replay of its calls: CPU seconds of the run, and of the bare calls by kind."""
    calls = Calls()
    with tempfile.TemporaryDirectory(prefix="flowrl-") as folder:
        trainer = instantiate(load_config(config, ["trackers=[]", "evaluation=null", f"updates={updates}", f"run_dir={folder}/run"]))
        trainer = replace(trainer, model=RecordingSource(trainer.model, calls), reward=RecordingReward(trainer.reward, calls))
        return {"update": _timed([trainer.run]), **calls.seconds()}


def per_update(config: str, updates: int) -> dict[str, float]:
    """CPU seconds of one update, and of its bare calls by kind."""
    one, more = measure(config, 1), measure(config, 1 + updates)
    return {name: (more[name] - one[name]) / updates for name in more}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="image/digits_g2rpo")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(options.config, 1)  # warm-up
    runs = [per_update(options.config, options.updates) for _ in range(options.repeats)]
    ratios = [run["update"] / sum(seconds for name, seconds in run.items() if name != "update") for run in runs]
    result = {
        "command": "python benchmarks/update_overhead.py",
        "config": options.config,
        "updates": options.updates,
        "repeats": options.repeats,
        "threads": options.threads,
        "load_average": os.getloadavg()[0],
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_seconds_per_update": {name: statistics.median(run[name] for run in runs) for name in runs[0]},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "update_overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
