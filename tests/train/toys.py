"""Small policies, rewards and runs for the trainer's tests; imported as ``toys`` (see conftest.py)."""

import copy
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowrl.flow import Condition, FlowSDE, Trajectory
from flowrl.rl import GroupAdvantage, PPOClip, RewardBatch
from flowrl.train import AdamW, RLTrainer, UpdateSettings
from flowrl.train.experience import Experience
from flowrl.train.learner import Learner
from flowrl.train.metrics import read_metrics
from samplers import SDESampler, ShiftedGrid

SHAPE = (3, 3, 3)
N = 27  # entries of a state
PROMPTS = ("0", "1", "2", "3")  # a prompt is the row of its embedding


class LinearNet(nn.Module):
    """``v = x·W + t·u + e[prompt]``, with dropout if asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(0.3 * torch.randn(N, N, generator=generator))
        self.time = nn.Parameter(0.1 * torch.randn(N, generator=generator))
        self.prompt = nn.Parameter(0.1 * torch.randn(len(PROMPTS), N, generator=generator))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        velocity = x.flatten(1) @ self.weight + t[:, None] * self.time + self.prompt[index]
        return self.dropout(velocity).reshape(x.shape)


class TableNet(nn.Module):
    """A field whose parameters are the velocity itself: one per noise level and prompt, whatever the state."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times.float())
        generator = torch.Generator().manual_seed(2)
        self.velocity = nn.Parameter(0.5 * torch.randn(len(times), len(PROMPTS), *SHAPE, generator=generator))

    def forward(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        del x
        return self.velocity[(t[:, None] - self.times).abs().argmin(1), index]


class ToyModel:
    """An :class:`flowrl.models.ImageModel` whose pictures are the squashed states."""

    latest: ClassVar["ToyModel"]

    def __init__(self, module: nn.Module) -> None:
        self.module, self.state_shape, self.device = module, SHAPE, torch.device("cpu")
        self._base = copy.deepcopy(module.state_dict())
        ToyModel.latest = self

    def prepare(self, prompts: Sequence[str]) -> None:
        self.prepared = tuple(prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition({"index": torch.tensor([int(prompt) for prompt in prompts])})

    def field(self, module: nn.Module | None = None) -> Callable[..., Tensor]:
        network = self.module if module is None else module
        return lambda x_t, t, condition: network(x_t, torch.as_tensor(t).expand(len(x_t)), condition.tensors["index"])

    def initial_state(self, noise: Tensor, t: float) -> Tensor:
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid()

    def default_times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        trained = copy.deepcopy(self.module.state_dict())
        self.module.load_state_dict(self._base)
        try:
            yield
        finally:
            self.module.load_state_dict(trained)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def save_weights(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True)
        save_file(dict(state or self.module.state_dict()), folder / "weights.safetensors")

    def load_weights(self, folder: Path) -> None:
        self.module.load_state_dict(load_file(folder / "weights.safetensors"))


@dataclass(frozen=True, kw_only=True)
class ToySource:
    dropout: float = 0.0

    def load(self, device: torch.device | str) -> ToyModel:
        del device
        return ToyModel(LinearNet(self.dropout).train(self.dropout > 0))


@dataclass(frozen=True, kw_only=True)
class ExplodingSource:
    """Loading it shows that a check came too late."""

    def load(self, device: torch.device | str) -> ToyModel:
        raise AssertionError("the model was loaded")


@dataclass(frozen=True, kw_only=True)
class Bright:
    """Mean brightness; ``event(calls so far)`` happens before each call."""

    event: ClassVar[Callable[[int], float | None]] = staticmethod(lambda calls: None)
    calls: ClassVar[int] = 0

    @property
    def weights(self) -> dict[str, float]:
        return {"bright": 1.0}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        replaced = Bright.event(Bright.calls)
        Bright.calls += 1
        scores = samples.mean((1, 2, 3))
        if replaced is not None:
            scores[3] = replaced
        return RewardBatch({"bright": scores})


GRID = ShiftedGrid(steps=4, shift=2.0)
DYNAMICS = FlowSDE(noise_level=0.7)


def sde(**fields: object) -> SDESampler:
    return SDESampler(**{"grid": GRID, "dynamics": DYNAMICS, "group_size": 4, **fields})


def trainer(run_dir: Path, **fields: object) -> RLTrainer:
    """A run of the toy model that takes milliseconds per update."""
    prompts = run_dir.parent / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    defaults = {
        "model": ToySource(),
        "sampler": sde(),
        "reward": Bright(),
        "prompts": str(prompts),
        "updates": 6,
        "prompts_per_update": 2,
        "advantage": GroupAdvantage(),
        "optimizer": AdamW(lr=1e-2),
        "checkpoint_every": 2,
        "trackers": (),
    }
    return RLTrainer(run_dir=str(run_dir), **(defaults | fields))


# ---------------------------------------------------------------------------------------------------- single updates


def make_learner(model: ToyModel, objective: object | None = None, accelerator: Accelerator | None = None, **settings: object) -> Learner:
    """A learner whose optimiser subtracts the gradient itself: SGD at rate 1, nothing clipped."""
    accelerator = accelerator or Accelerator()
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    prepared, optimizer = accelerator.prepare(model.module, optimizer)
    return Learner(
        accelerator=accelerator,
        model=model,
        prepared=prepared,
        parameters=model.trainable_parameters(),
        objective=objective or PPOClip(),
        optimizer=optimizer,
        schedule=schedule,
        settings=UpdateSettings(**{"max_grad_norm": 1e9, **settings}),
    )


def make_experience(model: object, sampler: object, condition: Condition | None = None, noise: Tensor | None = None) -> Experience:
    """A rollout of two prompts with random advantages."""
    generator = torch.Generator().manual_seed(0)
    condition = model.encode(PROMPTS[:2]) if condition is None else condition
    noise = torch.randn(2 * sampler.noise_rows(), *SHAPE, generator=generator) if noise is None else noise
    trajectory: Trajectory = sampler.sample(model.field(), noise, condition, generator)
    advantage = torch.randn(trajectory.log_prob.shape, generator=generator)
    return Experience(trajectory=trajectory, condition=condition, dynamics=sampler.dynamics, advantage=advantage)


def gradient(learner: Learner, experience: Experience) -> dict[str, Tensor]:
    """What one update subtracts from each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in learner.model.module.named_parameters()}
    learner.update(experience)
    return {name: before[name] - parameter.detach() for name, parameter in learner.model.module.named_parameters()}


# --------------------------------------------------------------------------------------------------------- processes


@dataclass
class Child:
    """A forked process: real signals, real exits, no second start of the interpreter."""

    pid: int
    output: Path

    def wait(self, seconds: float = 120) -> int:
        """The exit status; minus the signal's number if one ended it."""
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(ended[1])


def fork(work: Callable[[], object], output: Path, **environment: str) -> Child:
    """Run in a child process; its status is 0, or 1 after an exception, whose text ends up in ``output``."""
    pid = os.fork()
    if pid:
        return Child(pid, output)
    status = 1
    try:
        reset_accelerate()
        Bright.calls = 0
        os.environ.update(environment)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        status = 0
    except BaseException as error:  # the child must not run the parent's test
        sys.stderr.write(f"{type(error).__name__}: {error}")
        sys.stderr.flush()
    finally:
        os._exit(status)


def fork_pair(work: Callable[[], object], folder: Path) -> list[Child]:
    """The same work in two processes that talk through gloo; their output goes to ``rank0.txt`` and ``rank1.txt``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [fork(work, folder / f"rank{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]


def signal_self(run_dir: Path, updates: int, number: int) -> None:
    """Have this process signal itself while it scores the rollout after so many updates."""

    def event(calls: int) -> None:
        if count_lines(run_dir) == updates:
            os.kill(os.getpid(), number)

    Bright.event = staticmethod(event)


def reset_accelerate() -> None:
    """accelerate keeps its state per process; each test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


# -------------------------------------------------------------------------------------------------------- run folders


def lines(run_dir: Path, kind: str = "train") -> list[dict[str, object]]:
    """Metrics without what a clock measured."""
    found = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == kind]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in found]


def count_lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


def rewards(run_dir: Path) -> list[float]:
    return [line["reward"] for line in lines(run_dir)]


def assert_same_run(one: Path, other: Path, update: int) -> None:
    """Metrics, weights, averaged weights, optimiser, schedule and counters agree bit for bit."""
    assert lines(one) == lines(other)
    assert lines(one, "eval") == lines(other, "eval")
    folders = [run / "checkpoints" / f"update_{update:06d}" for run in (one, other)]
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in folders]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".safetensors"):
            assert_equal(*[load_file(folder / name) for folder in folders])
        elif name.endswith((".bin", ".pkl")) and "random" not in name:
            states = [torch.load(folder / name, weights_only=True) for folder in folders]
            assert_equal(*[without_seconds(state) for state in states])


def without_seconds(state: object) -> object:
    return {name: value for name, value in state.items() if name != "seconds"} if isinstance(state, dict) else state


def assert_equal(one: object, other: object) -> None:
    """Exact equality of nested states."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
