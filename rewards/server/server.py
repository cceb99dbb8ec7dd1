"""A reward server: what is served, where, and how it starts and ends."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowrl.errors import ConfigError, RewardError, require
from flowrl.rl import GroupReward, Reward, with_those_within
from rewards.remote.limits import Limits
from rewards.remote.wire import PROTOCOL
from rewards.scales import BatchScale, RunningScale
from rewards.self_test import run_self_tests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rewards.self_test import SelfTestReport
    from rewards.server.process import Process

__all__ = ["MIN_TOKEN_LENGTH", "RewardServer"]

MIN_TOKEN_LENGTH = 16
_LAST_PORT = 65535

logger = logging.getLogger("flowrl.rewards.server")


@dataclass(frozen=True, kw_only=True)
class RewardServer:
    """Serves a reward over HTTP; ``flowrl serve-reward CONFIG`` runs what a config describes.

    Requests are read concurrently and scored on one thread, those that wait together as one batch. On SIGTERM or Ctrl-C no request is
    taken any more, those under way are answered, and the process ends.

    Attributes:
        reward: What scores. A `rewards.CompositeReward` that normalises over batches belongs to the trainer, around its
            `rewards.RemoteReward`: here several clients' requests are one batch.
        host: Address to listen on; ``127.0.0.1`` is this machine only. Any other needs a token.
        port: To listen on; 0 takes a free one.
        token_env: Environment variable that holds the token which every request must bring. Where it is set, it is demanded on this
            machine too.
        device: Where samples are scored; ``auto`` is the first CUDA device if there is one, else the CPU.
        batch: Samples that are scored at once.
        window_ms: How long a request waits for others to be scored with, while nothing is being scored and there are several clients.
        limits: Of one request.
        self_test: Score the reward's known answers before the first request. A reward that has some and gets them wrong is not served.
        drain_s: How long requests under way may take after SIGTERM.
        identity: The same text for all servers whose scores may be mixed. None derives it from the reward's config, without ``device``,
            ``dtype`` and ``batch``; give one where paths differ between machines.

    Raises:
        ConfigError: If a number is out of range, or the reward normalises over the batch.
    """

    reward: Reward | GroupReward
    host: str = "127.0.0.1"
    port: int = 8123
    token_env: str = "FLOWRL_REWARD_TOKEN"
    device: str = "auto"
    batch: int = 32
    window_ms: float = 4.0
    limits: Limits = field(default_factory=Limits)
    self_test: bool = True
    drain_s: float = 60.0
    identity: str | None = None

    def __post_init__(self) -> None:
        if self.identity is not None and not re.fullmatch(r"[\w.-]+", self.identity, re.ASCII):
            raise ConfigError(f"identity must be letters, digits, dots, dashes and underscores, got {self.identity!r}")
        if not 0 <= self.port <= _LAST_PORT:
            raise ConfigError(f"port must be 0 to {_LAST_PORT}, got {self.port}")
        if self.batch < 1 or not self.window_ms >= 0 or not self.drain_s > 0:
            raise ConfigError(f"batch must be >= 1, window_ms >= 0 and drain_s > 0, got {self.batch}, {self.window_ms} and {self.drain_s}")
        for reward in with_those_within(self.reward):
            scales = getattr(reward, "normalise", {})
            for name, scale in scales.items() if isinstance(scales, Mapping) else ():
                if isinstance(scale, BatchScale | RunningScale):
                    raise ConfigError(
                        f"part {name!r} is put on a {type(scale).__name__}, which cannot be served: requests of several clients make up a "
                        "batch here; normalise in the trainer, in a rewards.CompositeReward around the rewards.RemoteReward"
                    )

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then answer what is under way.

        Raises:
            ConfigError: If the address is not this machine's own and there is no token, or it cannot be listened on.
            MissingExtraError: If FastAPI or uvicorn is not installed.
            RewardError: If the reward gets its known answers wrong, or cannot score at all.
        """
        with self._process() as process:
            logger.info("the reward is loading; then it is served on %s", process.url)
            process.run()

    @contextmanager
    def background(self) -> Iterator[str]:
        """Serve on a thread of this process, from when the reward is ready to the end of the ``with`` block; gives the address.

        Raises:
            ConfigError: Like :meth:`run`.
            MissingExtraError: Likewise.
            RewardError: Likewise.
        """
        with self._process() as process:
            thread = threading.Thread(target=process.serve, name="reward server", daemon=True)
            thread.start()
            try:
                process.wait_until_ready()
                yield process.url
            finally:
                process.end()
                thread.join()

    def token(self) -> str | None:
        """What every request must bring.

        Raises:
            ConfigError: If there must be a token and is none, or it is too short.
        """
        from rewards.server.names import is_loopback

        token = os.environ.get(self.token_env) or None
        if token is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines, which needs a token: "
                f"export {self.token_env}=$(openssl rand -hex 32) here and where the clients run, or serve on 127.0.0.1"
            )
        if token is not None and len(token) < MIN_TOKEN_LENGTH:
            raise ConfigError(f"the token in {self.token_env} has {len(token)} characters, at least {MIN_TOKEN_LENGTH} are needed")
        return token

    def about(self) -> dict[str, Any]:
        """What ``/health`` says of the reward; its identity is the same for every server of the same reward."""
        from rewards.server.names import identity

        return {
            "reward": type(self.reward).__name__,
            "protocol": PROTOCOL,
            "identity": self.identity or identity(self.reward),
            "weights": {name: float(weight) for name, weight in self.reward.weights.items()},
            "needs_groups": bool(getattr(self.reward, "needs_groups", False)),
        }

    def first_test(self) -> list[SelfTestReport]:
        """Self-test the reward, which also loads it.

        Raises:
            RewardError: If it has known answers and gets them wrong.
        """
        reports = run_self_tests(self.reward, device=self.torch_device()) if self.self_test else []
        problems = [problem for report in reports for problem in report.problems]
        if problems and any(hasattr(reward, "known_answers") or hasattr(reward, "self_test") for reward in with_those_within(self.reward)):
            raise RewardError(f"the reward fails its self-test: {'; '.join(problems)} (self_test: false serves it all the same)")
        for problem in problems:
            logger.warning("self-test: %s", problem)
        return reports

    def torch_device(self) -> str:
        """The device that ``auto`` stands for."""
        import torch

        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return automatic if self.device == "auto" else self.device

    @contextmanager
    def _process(self) -> Iterator[Process]:
        for module in ("fastapi", "uvicorn"):
            require(module, "server")
        from rewards.server.process import Process

        token = self.token()
        with _bound(self.host, self.port) as listener:
            yield Process(self, listener, token)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has its address, and does not listen yet: whoever connects is refused, and does not wait for a reward to load."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error}; give an address of this machine, such as 127.0.0.1") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; choose another port, 0 for a free one") from error
        yield listener
