"""The client of a reward server: a reward like any other for the trainer, and never a score that no server gave."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from flowrl.errors import ConfigError, RewardError
from flowrl.rl import RewardBatch
from rewards.remote.asking import Asker, Wanted
from rewards.remote.rows import row_batches
from rewards.remote.servers import AskError, Backoff, Servers, clock_time
from rewards.remote.wire import Answer, Question, WireFormat
from rewards.self_test import CaseOutcome, SelfTestReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["RemoteReward"]

_AXES = (4, 5)  # of pictures, of videos
_FINAL = ("permission", "other reward")
_LOOK_EVERY_S = 2.0  # at most, while servers start
_REASONS = 3  # that a warning lists

logger = logging.getLogger("flowrl.rewards.remote")


@dataclass(frozen=True, kw_only=True)
class RemoteReward:
    """A reward that one or more servers (``flowrl serve-reward``) score.

    Requests are spread over the servers. One that fails rests, for longer every time, while the others take over; once it is healthy again
    it gets its share again. Where no server answers, the rows get NaN, or the call raises; what to do then is the trainer's
    ``on_reward_failure``. While a server scores, the trainer draws the next part of the rollout (``rollout_parts``).

    Attributes:
        servers: Their addresses, ``http://127.0.0.1:8123``; all serve the same reward.
        weights: Name of a part to its weight here. The servers must score these parts; further ones are left out.
        needs_groups: Whether the reward compares samples of a group, as the servers say; whole groups are then sent.
        token_env: Environment variable that holds the servers' token; none is sent where it is not set.
        wire: How pictures travel: ``float32`` (to the bit), ``float16``, or as 8-bit levels, raw (``uint8``) or compressed without
            loss (``png``).
        batch: Samples of one request; a group that is larger stays whole.
        requests: Under way at once, per server.
        timeout_s: For one answer of one server.
        connect_timeout_s: For a connection.
        retries: Rounds after the first one; in each, every server is asked until one answers.
        backoff_s: The first pause between rounds, doubled every time; up to half of it is left out at random.
        max_backoff_s: That no pause exceeds.
        start_within_s: How long :meth:`check` waits for a first server that is ready.

    All but ``weights``, ``needs_groups`` and ``wire`` may change when a run is resumed.

    Raises:
        ConfigError: If there are no servers or no weights, an address is none, or a number is out of range.
    """

    free_on_resume: ClassVar[tuple[str, ...]] = (
        "servers",
        "token_env",
        "batch",
        "requests",
        "timeout_s",
        "connect_timeout_s",
        "retries",
        "backoff_s",
        "max_backoff_s",
        "start_within_s",
    )

    servers: tuple[str, ...]
    weights: Mapping[str, float]
    needs_groups: bool = False
    token_env: str = "FLOWRL_REWARD_TOKEN"
    wire: WireFormat = "float32"
    batch: int = 16
    requests: int = 2
    timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    retries: int = 12
    backoff_s: float = 0.5
    max_backoff_s: float = 10.0
    start_within_s: float = 300.0

    def __post_init__(self) -> None:
        urls = tuple(url.rstrip("/") for url in self.servers)
        if not urls or any(not url.startswith(("http://", "https://")) for url in urls) or len(set(urls)) < len(urls):
            raise ConfigError(f"servers must be different addresses such as http://127.0.0.1:8123, got {list(self.servers)}")
        if not self.weights or not all(map(math.isfinite, self.weights.values())):
            raise ConfigError(f"weights must name the parts that the servers score, finite each, got {dict(self.weights)}")
        for name in ("batch", "requests", "timeout_s", "connect_timeout_s", "backoff_s", "max_backoff_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.retries < 0 or not self.start_within_s >= 0:
            raise ConfigError(f"retries and start_within_s must be >= 0, got {self.retries} and {self.start_within_s}")
        object.__setattr__(self, "servers", urls)

    def check(self) -> None:
        """Wait until a server is ready, and make sure that all that are serve this reward; the trainer asks before it loads the model.

        Raises:
            RewardError: If none is ready in time, one refuses the token, or one serves another reward.
        """
        until, attempt = time.monotonic() + self.start_within_s, 0
        while True:
            found, problems = self._look()
            final = [text for text, fault in problems if fault in _FINAL]
            if final or (not found and time.monotonic() >= until):
                raise RewardError("; ".join(final or [text for text, _ in problems]))
            if found:
                break
            level, text = logging.DEBUG if attempt else logging.WARNING, "waiting for a reward server, gives up at %s: %s"
            logger.log(level, text, clock_time(until), problems[0][0])
            time.sleep(min(self._backoff.pause_s(attempt), _LOOK_EVERY_S, max(until - time.monotonic(), 0.0)))
            attempt += 1
        if attempt:
            logger.warning("a reward server is ready")
        for text in [
            *dict.fromkeys(remark for about in found for remark in self._asker.wanted.remarks(about)),
            *(text for text, _ in problems),
        ]:
            logger.warning("%s", text)

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score samples; see `flowrl.rl.Reward` and `flowrl.rl.GroupReward`.

        Raises:
            RewardError: If no server scored any of them.
            ValueError: If the samples are not pictures or videos with one prompt each, or groups are needed and missing.
        """
        if groups is None and self.needs_groups:
            raise ValueError("this reward compares the samples of a group; give groups, one integer a sample")
        return self.submit(samples, prompts, torch.arange(len(prompts)) if groups is None else groups)()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """Send samples off; what comes back waits for their scores.

        Args:
            samples: ``(batch, 3, height, width)`` or ``(batch, frame, 3, height, width)`` in [0, 1].
            prompts: One a sample.
            groups: ``(batch,)`` integer, the same for samples that are compared.

        Raises:
            ValueError: If they do not fit together.
        """
        if samples.ndim not in _AXES or samples.shape[-3] != 3 or not samples.is_floating_point():  # noqa: PLR2004 - RGB
            raise ValueError(
                f"samples must be floating point (batch, [frame,] 3, height, width), got {samples.dtype} {tuple(samples.shape)}"
            )
        if not len(samples) == len(prompts) == len(groups):
            raise ValueError(f"got {len(samples)} samples, {len(prompts)} prompts and {len(groups)} groups; give one of each a sample")
        here, numbers, since = samples.detach().cpu(), groups.cpu(), time.monotonic()
        sent = []
        for units in row_batches(numbers, self.batch, whole=self.needs_groups):
            rows = torch.cat(units)
            sent.append((rows, self._start(partial(self._question, here, prompts, numbers, rows), since)))
        return lambda: self._collected(sent, len(prompts), samples.device)

    def self_test(self) -> SelfTestReport:
        """How the reward scores its known answers, on every server."""
        cases, problems = list[CaseOutcome](), list[str]()
        for server in self._asker.servers:
            try:
                reports = self._asker.servers.self_test(server, self.timeout_s)["reports"]
                cases += [_outcome(case) for report in reports for case in report["cases"]]
                problems += [f"{server.url}: {text}" for report in reports for text in report["problems"]]
            except (AskError, KeyError, TypeError, ValueError) as error:
                problems.append(f"{server.url}: {error}")
        return SelfTestReport(reward=type(self).__name__, cases=tuple(cases), problems=tuple(problems))

    @property
    def _backoff(self) -> Backoff:
        return Backoff(first_s=self.backoff_s, longest_s=self.max_backoff_s)

    @property
    def _asker(self) -> Asker:
        """What asks in this process; a process that was forked off makes its own connections."""
        return self._askers.get(os.getpid()) or self._askers.setdefault(os.getpid(), self._new_asker())

    @cached_property
    def _askers(self) -> dict[int, Asker]:
        return {}

    def _new_asker(self) -> Asker:
        token = os.environ.get(self.token_env) or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError(f"the token in {self.token_env} must be printable ASCII")
        slots = self.requests * len(self.servers)
        servers = Servers(self.servers, token=token, connect_timeout_s=self.connect_timeout_s, backoff=self._backoff, slots=slots)
        wanted = Wanted(weights=self.weights, needs_groups=self.needs_groups)
        return Asker(servers=servers, wanted=wanted, wire=self.wire, retries=self.retries, backoff=self._backoff, timeout_s=self.timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_askers"}  # connections stay in their process

    def _look(self) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]]]:
        """What the servers that are ready say of themselves; and of the others, what is wrong and whose fault it is."""
        found, problems = [], []
        for server in self._asker.servers:
            try:
                found.append(self._asker.verify(server))
                self._asker.servers.is_back(server)
            except AskError as error:
                self._asker.servers.failed(server, error)
                problems.append((f"reward server {server.url}: {error}", str(error.fault)))
        return found, problems

    def _question(self, samples: Tensor, prompts: Sequence[str], groups: Tensor, rows: Tensor) -> Question:
        some = [prompts[row] for row in rows.tolist()]
        return Question(samples=samples[rows], prompts=some, groups=groups[rows], timeout_s=self.timeout_s)

    def _start(self, question: Callable[[], Question], since: float) -> Future[Answer]:
        """Ask on a thread of its own, which does not keep the process from ending."""
        answer, asker = Future[Answer](), self._asker

        def work() -> None:
            with asker.servers.slots:
                try:
                    answer.set_result(asker.ask(question(), since))
                except BaseException as error:  # raised again where the scores are waited for
                    answer.set_exception(error)

        threading.Thread(target=work, name="remote reward", daemon=True).start()
        return answer

    def _collected(self, sent: Sequence[tuple[Tensor, Future[Answer]]], count: int, device: torch.device) -> RewardBatch:
        parts = {name: torch.full((count,), torch.nan) for name in self.weights}
        reasons, failed = Counter[str](), list[RewardError]()
        for rows, pending in sent:
            try:
                answer = pending.result()
            except RewardError as error:
                failed.append(error)
                reasons[str(error)] += len(rows)
                continue
            reasons.update(answer.reasons.values())
            for name, scores in answer.parts.items():
                parts[name][rows] = scores
        if failed and len(failed) == len(sent):
            raise failed[0]
        if reasons:
            told = "; ".join(f"{times} times: {reason}" for reason, times in reasons.most_common(_REASONS))
            logger.warning("%d of %d samples have no score, or lack a part: %s", reasons.total(), count, told)
        return RewardBatch({name: part.to(device) for name, part in parts.items()})


def _outcome(case: Mapping[str, Any]) -> CaseOutcome:
    scores = tuple(math.nan if score is None else float(score) for score in case["scores"])
    return CaseOutcome(name=case["name"], scores=scores, held=case["held"], pairs=case["pairs"], problem=case["problem"])
