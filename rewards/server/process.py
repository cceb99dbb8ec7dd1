"""A running server: uvicorn, the reward's thread, and their common end."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from rewards.server.app import Service, create_app
from rewards.server.batching import RewardThread
from rewards.server.load import Load

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import FrameType

    from rewards.self_test import SelfTestReport
    from rewards.server.server import RewardServer

__all__ = ["Process"]

_KEEP_ALIVE_S = 60  # longer than clients keep idle connections, so that they never find one closed

logger = logging.getLogger("flowrl.rewards.server")


class Process:
    """One life of a `rewards.server.RewardServer`."""

    def __init__(self, server: RewardServer, listener: socket.socket, token: str | None) -> None:
        """Prepare everything; nothing runs yet.

        Args:
            server: The configuration.
            listener: Bound, not listening yet.
            token: What every request must bring, if anything.
        """
        self._drain_s = server.drain_s
        self._listener = listener
        self._thread = RewardThread(
            server.reward, device=server.torch_device(), batch=server.batch, window_s=server.window_ms / 1000, load=Load()
        )
        self._service = Service(thread=self._thread, limits=server.limits, token=token, about=server.about())
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                create_app(self._service),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(server.drain_s),
            ),
            on_listening=lambda: self._thread.call(self._first_test).add_done_callback(self._tested),
            on_signal=self._drain,
        )
        self._first_test = server.first_test
        self._settled = threading.Event()
        self._problem: BaseException | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until told to end.

        Raises:
            RewardError: If the reward fails its first test.
        """
        self.serve()
        if self._problem is not None:
            raise self._problem

    def serve(self) -> None:
        """Load the reward, serve, and end; what went wrong while loading is kept for :meth:`wait_until_ready`."""
        self._thread.start()
        try:
            self._uvicorn.run(sockets=[self._listener])
        finally:
            self._service.status = "draining"
            if not self._thread.stop(self._drain_s):
                logger.warning("the reward was still busy after %g s and is left to its end", self._drain_s)
            self._settled.set()

    def wait_until_ready(self) -> None:
        """Wait for the reward's first test.

        Raises:
            RewardError: If it fails.
        """
        self._settled.wait()
        if self._problem is not None:
            raise self._problem

    def end(self) -> None:
        """Ask it to end."""
        self._uvicorn.should_exit = True

    def _drain(self) -> None:
        self._service.status = "draining"

    def _tested(self, done: Future[list[SelfTestReport]]) -> None:
        self._problem = done.exception()
        if self._problem is None:
            self._service.about = {**self._service.about, "self_test": [_told(report) for report in done.result()]}
            self._service.status = "ready"
            logger.info("ready: %s on %s", ", ".join(self._service.about["weights"]), self.url)
        else:
            self._service.status = "failed"
            self.end()
        self._settled.set()


class _Uvicorn(uvicorn.Server):
    """Ends with status 0 on SIGTERM, and tells when it listens and when a signal comes."""

    def __init__(self, config: uvicorn.Config, *, on_listening: Callable[[], None], on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening, self._on_signal = on_listening, on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second signal ends at once."""
        del sig, frame
        self._on_signal()
        self.force_exit = self.should_exit
        self.should_exit = True


def _told(report: SelfTestReport) -> dict[str, Any]:
    return {"reward": report.reward, "passed": report.passed, "problems": list(report.problems)}
