"""Rewards, servers and answers that misbehave on purpose; imported as ``serving`` (see conftest.py)."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import torch
from torch import Tensor

from flowrl.rl import RewardBatch, facts_of
from rewards import Brightness, RemoteReward
from rewards.server import Limits, RewardServer, process

__all__ = ["process"]  # imported here so that forked servers start at once

PROMPTS = ("a", "b", "c", "d", "e", "f", "g", "h")


def pictures(count: int = 8, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def local(samples: Tensor) -> Tensor:
    """What the server's `Brightness` gives, without a server."""
    return Brightness()(samples, [""] * len(samples)).parts["brightness"]


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Brightness that does what prompts say: ``bad`` and ``broken`` raise, ``nan`` and ``inf`` are scored so, ``fact`` reads a fact."""

    calls: ClassVar[list[list[str]]] = []
    gate: ClassVar[threading.Event] = threading.Event()
    most: int = 1000

    @property
    def weights(self) -> dict[str, float]:
        return {"bright": 1.0}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        prompts = list(prompts)
        Scripted.calls.append([str(prompt) for prompt in prompts])
        if "wait" in prompts:
            Scripted.gate.wait(20)
        if "bad" in prompts:
            raise ValueError("a prompt is bad")
        if "broken" in prompts:
            raise RuntimeError("the card is broken")
        if len(prompts) > self.most:
            raise torch.OutOfMemoryError("too many rows")
        scores = samples.flatten(1).mean(1)
        for row, prompt in enumerate(prompts):
            scores[row] = {"nan": torch.nan, "inf": torch.inf, "fact": facts_of(prompt).get("score")}.get(str(prompt), scores[row])
        return RewardBatch({"bright": scores})

    @classmethod
    def reset(cls) -> None:
        cls.calls.clear()
        cls.gate.clear()


@dataclass(frozen=True, kw_only=True)
class GroupSize:
    """How many samples of the same group a sample sees, itself included; and how many there are in all."""

    needs_groups: ClassVar[bool] = True
    weights: dict[str, float] = field(default_factory=lambda: {"members": 1.0})

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> RewardBatch:
        if "bad" in prompts:
            raise ValueError("a prompt is bad")
        return RewardBatch({"members": (groups[:, None] == groups[None]).sum(1).float()})


def server(reward: object = None, **fields: object) -> RewardServer:
    return RewardServer(**{"reward": reward or Brightness(), "port": 0, "self_test": False, "window_ms": 0.0, **fields})


def client(*urls: str, **fields: object) -> RemoteReward:
    """A client that gives up quickly."""
    quick = {
        "weights": {"brightness": 1.0},
        "retries": 2,
        "backoff_s": 0.02,
        "timeout_s": 5.0,
        "connect_timeout_s": 1.0,
        "start_within_s": 0.0,
    }
    return RemoteReward(servers=urls, **(quick | fields))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


# ---------------------------------------------------------------------------------------------------- foreign servers

HEALTHY = {"status": "ready", "protocol": 1, "weights": {"brightness": 1.0}, "needs_groups": False, "identity": "1", "reward": "Brightness"}


@contextmanager
def impostor(answer: Callable[[BaseHTTPRequestHandler], None], health: dict[str, object] | None = None) -> Iterator[str]:
    """A server that is healthy, and answers questions as it likes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            say(self, json.dumps(health or HEALTHY).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.handle_error = lambda *_: None  # clients that hang up are what is tested
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_address[1]}"
    finally:
        found.shutdown()
        found.server_close()
        thread.join()


def say(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body) if length is None else length))
    handler.send_header("x-flowrl-reward", "1")
    handler.end_headers()
    handler.wfile.write(body)


# ---------------------------------------------------------------------------------------------------- server processes


@dataclass
class ServerProcess:
    """A server in forked processes, all on one port: each waits for its turn, so that none has to be forked while threads run."""

    make: Callable[[int], RewardServer]
    port: int = field(default_factory=free_port)
    pid: int = 0
    standby: list[tuple[int, int]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self, lives: int) -> "ServerProcess":
        for _ in range(lives):
            begin, started = os.pipe()
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    os.close(started)
                    if os.read(begin, 1):
                        self.make(self.port).run()
                    status = 0
                finally:
                    os._exit(status)
            os.close(begin)
            self.standby.append((pid, started))
        return self

    def start(self) -> "ServerProcess":
        self.pid, started = self.standby.pop(0)
        os.write(started, b"!")
        os.close(started)
        return self

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            try:
                return httpx.get(f"{self.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        until(ready)

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait; the exit status, minus the signal's number if it ended it."""
        pid, self.pid = self.pid, 0
        os.kill(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def end_all(self) -> None:
        if self.pid:
            self.end()
        for pid, started in self.standby:
            os.close(started)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.standby.clear()


SMALL = Limits(body_mb=0.5, pictures=16, pixels=64 * 64, total_pixels=16 * 64 * 64, requests=2, timeout_s=1.0, receive_s=0.5)
