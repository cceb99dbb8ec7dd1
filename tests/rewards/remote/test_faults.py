"""Real server processes that are killed, stopped and restarted while clients and whole runs depend on them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import httpx
import pytest
import torch
import toys
from serving import ServerProcess, client, local, pictures, until
from torch import Tensor

from flowrl.errors import CheckpointError, RewardError
from flowrl.rl import RewardBatch
from rewards import Brightness, RemoteReward
from rewards.remote.wire import CONTENT_TYPE, Question, pack_question
from rewards.server import RewardServer


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    toys.reset_accelerate()
    yield
    toys.reset_accelerate()


@dataclass(frozen=True, kw_only=True)
class Slow(Brightness):
    """Brightness that takes its time, so that something can happen meanwhile."""

    seconds: float = 0.05

    def __call__(self, samples, prompts):
        time.sleep(self.seconds)
        return super().__call__(samples, prompts)


def slow_server(port: int) -> RewardServer:
    return RewardServer(reward=Slow(), port=port, self_test=False)


@pytest.fixture
def servers():
    """Makes server processes, and ends what is left of them."""
    made = []

    def make(lives: int = 1) -> ServerProcess:
        made.append(ServerProcess(slow_server).prepare(lives))
        return made[-1]

    yield make
    for process in made:
        process.end_all()


@dataclass(frozen=True, kw_only=True)
class Eventful(RemoteReward):
    """A client during whose calls, counted from 0, something happens."""

    before: ClassVar[dict[int, Callable[[], object]]] = {}
    after: ClassVar[dict[int, Callable[[], object]]] = {}
    calls: ClassVar[list[Callable[[], RewardBatch]]] = []

    def submit(self, samples: Tensor, prompts, groups: Tensor):
        number = len(self.calls)
        self.before.get(number, lambda: None)()
        self.calls.append(super().submit(samples, prompts, groups))
        self.after.get(number, lambda: None)()
        return self.calls[-1]


def eventful(*urls: str, before=None, after=None, **fields: object) -> Eventful:
    Eventful.before, Eventful.after, Eventful.calls = before or {}, after or {}, []
    defaults = {"weights": {"brightness": 1.0}, "retries": 30, "backoff_s": 0.05, "max_backoff_s": 0.2, "timeout_s": 10.0}
    return Eventful(servers=urls, **(defaults | fields))


def local_run(folder, **fields):
    toys.trainer(folder, reward=Brightness(), **fields).run()
    return folder


# ---------------------------------------------------------------------------------------------------------- whole runs


def test_a_server_killed_and_restarted_in_mid_run_leaves_no_trace_in_the_run(servers, tmp_path):
    server = servers(lives=3).start()

    def kill_and_restart():
        server.end()
        threading.Timer(0.3, server.start).start()

    reward = eventful(server.url, after={1: kill_and_restart, 4: kill_and_restart})
    toys.trainer(tmp_path / "remote", reward=reward, on_reward_failure="stop").run()
    assert len(reward.calls) == 6
    assert not server.standby, "it was started three times"
    toys.assert_same_run(tmp_path / "remote", local_run(tmp_path / "local"), 6)


def test_a_run_on_two_servers_does_not_notice_the_death_of_one(servers, tmp_path):
    one, other = servers().start(), servers().start()
    reward = eventful(one.url, other.url, batch=2, after={2: one.end})
    toys.trainer(tmp_path / "remote", reward=reward).run()
    toys.assert_same_run(tmp_path / "remote", local_run(tmp_path / "local"), 6)


def test_a_part_of_an_update_that_no_server_scores_is_dropped_counted_and_logged(servers, tmp_path, caplog):
    server = servers(lives=2).start()

    def end():
        reward.calls[-1]()
        server.end()

    def start():
        server.start()
        server.wait_until_ready()

    # Two groups an update, a call each: the second call of the third update finds no server, the next update finds one again.
    reward = eventful(server.url, retries=1, before={5: end, 6: start})
    toys.trainer(tmp_path / "run", reward=reward, on_reward_failure="drop", reward_batch=4).run()
    assert [line["groups_dropped"] for line in toys.lines(tmp_path / "run")] == [0, 0, 1, 0, 0, 0]
    assert "goes on without 1 of 2 groups: no reward server gave scores: http://127.0.0.1" in caplog.text
    untouched = local_run(tmp_path / "local", reward_batch=4)
    assert toys.lines(tmp_path / "run")[:2] == toys.lines(untouched)[:2]


def test_a_run_without_a_server_stops_with_a_checkpoint_and_goes_on_with_another_server(servers, tmp_path, monkeypatch):
    server, elsewhere = servers().start(), servers().start()
    server.wait_until_ready()
    submit, calls = RemoteReward.submit, []

    def submit_and_kill(*args):
        calls.append(args)
        if len(calls) == 4:
            server.end()
        return submit(*args)

    monkeypatch.setattr(RemoteReward, "submit", submit_and_kill)
    with pytest.raises(RewardError, match=f"no reward server gave scores: {server.url} .*on_reward_failure=drop goes on"):
        toys.trainer(tmp_path / "remote", reward=client(server.url, start_within_s=20.0)).run()
    assert toys.count_lines(tmp_path / "remote") == 3
    toys.reset_accelerate()
    elsewhere.wait_until_ready()
    with pytest.raises(CheckpointError, match=r"another configuration \(reward.wire: float32 -> png\)"):
        toys.trainer(tmp_path / "remote", reward=client(elsewhere.url, wire="png")).run(resume=True)
    toys.reset_accelerate()
    toys.trainer(tmp_path / "remote", reward=client(elsewhere.url, batch=3, retries=4), on_reward_failure="drop").run(resume=True)
    toys.reset_accelerate()
    toys.assert_same_run(tmp_path / "remote", local_run(tmp_path / "local"), 6)


def test_scores_of_one_part_come_while_the_next_is_drawn_and_change_nothing(servers, tmp_path):
    server = servers().start()
    toys.trainer(tmp_path / "remote", reward=eventful(server.url), rollout_parts=2).run()
    toys.assert_same_run(tmp_path / "remote", local_run(tmp_path / "local"), 6)


@pytest.mark.slow
def test_two_trainer_processes_stop_together_when_the_server_dies_under_one(servers, tmp_path):
    server = servers().start()
    server.wait_until_ready()

    def work():
        rank = int(os.environ["RANK"])
        reward = eventful(server.url, retries=1, before={2: lambda: rank == 0 and os.kill(server.pid, signal.SIGKILL)})
        toys.trainer(tmp_path / "run", reward=reward).run()

    (tmp_path / "prompts.txt").write_text("\n".join(toys.PROMPTS), encoding="utf-8")
    children = toys.fork_pair(work, tmp_path)
    assert [child.wait(60) for child in children] == [1, 1]
    for child in children:
        assert "RewardError: no reward server gave scores" in child.output.read_text()
    assert (tmp_path / "run" / "checkpoints" / "update_000002").is_dir()


# ---------------------------------------------------------------------------------------------------- single processes


def test_a_server_that_is_frozen_is_left_for_another_and_used_again_when_it_thaws(servers):
    frozen, other = servers().start(), servers().start()
    for process in (frozen, other):
        process.wait_until_ready()
    reward = client(frozen.url, other.url, timeout_s=1.0)
    reward.check()
    os.kill(frozen.pid, signal.SIGSTOP)
    for _ in range(3):
        assert torch.equal(reward(pictures(2), ["a"] * 2).parts["brightness"], local(pictures(2)))
    os.kill(frozen.pid, signal.SIGCONT)
    first, second = reward._asker.servers

    def both_used():
        reward(pictures(2), ["a"] * 2)
        return first.trusted and second.trusted

    until(both_used)


def test_on_sigterm_what_is_under_way_is_answered_and_the_process_ends_well(servers):
    server = servers().start()
    server.wait_until_ready()
    body = pack_question(Question(samples=pictures(8), prompts=["a"] * 8, groups=torch.arange(8)), "float32")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{server.url}/score", content=body, headers={"content-type": CONTENT_TYPE}) for _ in range(4)]
        until(lambda: httpx.get(f"{server.url}/health").json()["load"]["requests_under_way"] == 4 or any(a.done() for a in asked))
        assert server.end(signal.SIGTERM) == 0
        assert [answer.result().status_code for answer in asked] == [200] * 4
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


@pytest.mark.slow
def test_eight_client_processes_at_once_lose_and_mix_up_nothing(servers):
    server = servers().start()
    server.wait_until_ready()

    def work(seed: int) -> bool:
        reward = client(server.url, batch=3, retries=20)
        drawn = [pictures(7, side=8 + 8 * (seed % 2), seed=100 * seed + turn) for turn in range(6)]
        return all(torch.equal(reward(batch, ["a"] * 7).parts["brightness"], local(batch)) for batch in drawn)

    children = []
    for seed in range(8):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                status = 0 if work(seed) else 1
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 8
    load = httpx.get(f"{server.url}/health").json()["load"]
    assert load["rows"] == 8 * 6 * 7
    assert (load["rows_missing"], load["rows_failed"]) == (0, 0)
    assert load["batches"] < load["jobs"], "some requests were scored together"
