"""The server's pages: who may ask, what is refused and how, and what it says of itself."""

import dataclasses
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import httpx
import pytest
import torch
from PIL import Image
from serving import PROMPTS, SMALL, GroupSize, Scripted, client, free_port, local, pictures, server, until

from flowrl.cli.main import main
from flowrl.config import instantiate, load_config
from flowrl.errors import ConfigError, RewardError
from flowrl.rl import RewardBatch
from rewards import Brightness, CompositeReward, JpegCompressibility
from rewards.remote.wire import CONTENT_TYPE, Question, pack_question
from rewards.scales import BatchScale, FixedScale, RunningScale
from rewards.self_test import KnownAnswer, run_self_test
from rewards.server import Limits, RewardServer

TOKEN = "0123456789abcdef-secret"
BODY = {"content-type": CONTENT_TYPE}


@pytest.fixture(autouse=True)
def _fresh():
    Scripted.reset()
    yield
    Scripted.gate.set()


@pytest.fixture(scope="module")
def plain():
    """A server of brightness without a token, with small limits."""
    with server(limits=SMALL).background() as url:
        yield url


@contextmanager
def scripted(**fields):
    with server(Scripted(), **fields).background() as url:
        yield url


def asked(*prompts, samples=None, wire="uint8", timeout_s=None):
    samples = pictures(len(prompts)) if samples is None else samples
    return pack_question(Question(samples=samples, prompts=prompts, groups=torch.arange(len(prompts)), timeout_s=timeout_s), wire)


def post(url, body, headers=None, **more):
    return httpx.post(f"{url}/score", content=body, headers=BODY if headers is None else headers, timeout=20, **more)


# ------------------------------------------------------------------------------------------------------------ scoring


@pytest.mark.parametrize("wire", ["float32", "float16", "uint8", "png"])
def test_a_question_in_every_wire_format_is_answered(plain, wire):
    answer = post(plain, asked("a", "b", wire=wire))
    assert answer.status_code == 200
    torch.testing.assert_close(torch.tensor(answer.json()["parts"]["brightness"]), local(pictures(2)), atol=2e-3, rtol=0)
    assert answer.json()["reasons"] == {}


def test_one_picture_can_be_sent_as_a_png_file(plain):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 51)).save(file, format="PNG")
    answer = post(plain, file.getvalue(), {"content-type": "image/png"}, params={"prompt": "a red square"})
    assert answer.json()["parts"]["brightness"] == [pytest.approx((1 + 0 + 0.2) / 3)]


def test_rows_that_cannot_be_scored_are_null_with_a_reason():
    with scripted() as url:
        answer = post(url, asked("bad", "a", "nan", "inf")).json()
    assert [score is None for score in answer["parts"]["bright"]] == [True, False, True, True]
    assert answer["reasons"] == {"0": "ValueError: a prompt is bad", "2": "part 'bright' is nan", "3": "part 'bright' is inf"}


def test_many_clients_at_once_all_get_their_own_scores_and_are_scored_together():
    with scripted(batch=64) as url, ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, url, asked("wait"))
        until(lambda: Scripted.calls)
        batches = [pictures(3, seed=seed) for seed in range(8)]
        answers = [pool.submit(post, url, asked("a", "b", "c", samples=samples, wire="float32")) for samples in batches]
        until(lambda: httpx.get(f"{url}/health").json()["load"]["rows_waiting"] == 24)
        Scripted.gate.set()
        for samples, answer in zip(batches, answers, strict=True):
            torch.testing.assert_close(torch.tensor(answer.result().json()["parts"]["bright"]), local(samples))
        assert first.result().status_code == 200
    assert [len(call) for call in Scripted.calls] == [1, 24]


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (
            b"{}",
            {"content-type": "application/json"},
            415,
            "a body of type 'application/json' cannot be read; send application/x-safetensors",
        ),
        (b"\x80\x04.", {"content-type": "application/octet-stream"}, 415, "cannot be read"),
        (b"noise", BODY, 400, "not safetensors"),
        (b"", BODY, 400, "not safetensors"),
        (b"noise", {"content-type": "image/png"}, 400, "not a PNG file"),
        (b"\0" * 600_000, BODY, 413, "at most 0.5 are allowed (limits.body_mb); send fewer pictures"),
        (iter([b"\0" * 300_000] * 2), BODY, 413, "at most 0.5 are allowed (limits.body_mb)"),
        (asked(*"a" * 17), BODY, 413, "got 17 pictures, at most 16 are allowed at a time (limits.pictures)"),
        (asked("a", samples=torch.rand(1, 3, 65, 64)), BODY, 413, "a picture has 65 x 64 pixels"),
    ],
    ids=["JSON", "pickle", "noise", "nothing", "no PNG", "announced size", "chunks", "pictures", "pixels"],
)
def test_a_body_that_is_wrong_or_too_large_is_refused_in_words(plain, body, headers, status, words):
    answer = post(plain, body, headers)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert post(plain, asked("a")).status_code == 200, "the server goes on"


def test_a_huge_announced_body_is_refused_without_waiting_for_it(plain):
    host, port = plain.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(f"POST /score HTTP/1.1\r\nhost: {host}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: 99999999999\r\n\r\n".encode())
        start = time.monotonic()
        assert b" 413 " in raw.recv(4096)
        assert time.monotonic() - start < 5


def test_a_body_that_trickles_in_is_given_up(plain):
    host, port = plain.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(f"POST /score HTTP/1.1\r\nhost: {host}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: 1000\r\n\r\nab".encode())
        answer = b""
        while b"receive_s" not in answer:
            answer += raw.recv(4096)
    assert b" 408 " in answer
    assert b"only 2 bytes of the body came in 0.5 s" in answer


def test_more_requests_than_are_allowed_are_told_to_come_again():
    with scripted(limits=Limits(requests=1)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, asked("wait"))
        until(lambda: Scripted.calls)
        second = post(url, asked("a"))
        Scripted.gate.set()
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert "1 requests are under way (limits.requests)" in second.json()["detail"]
        assert first.result().status_code == 200


@pytest.mark.parametrize(("limits", "timeout_s"), [(Limits(timeout_s=0.1), None), (Limits(), 0.1)], ids=["the server's", "the asker's"])
def test_scoring_that_takes_too_long_is_given_up(limits, timeout_s):
    with scripted(limits=limits) as url:
        answer = post(url, asked("wait", timeout_s=timeout_s))
        assert answer.status_code == 504
        assert "scoring took longer than it may" in answer.json()["detail"]
        Scripted.gate.set()


def test_a_server_whose_reward_hangs_says_so_and_takes_nothing_more():
    with scripted(limits=Limits(timeout_s=0.1)) as url:
        post(url, asked("wait"))
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "stuck")
        assert post(url, asked("a")).json()["detail"] == "the server is stuck; come again"
        Scripted.gate.set()
        until(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert post(url, asked("a")).status_code == 200


def test_a_request_whose_asker_has_gone_is_not_scored():
    with scripted() as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, asked("wait"))
        until(lambda: Scripted.calls)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/score", content=asked("gone"), headers=BODY, timeout=0.2)
        until(lambda: httpx.get(f"{url}/health").json()["load"]["requests_under_way"] == 1)
        Scripted.gate.set()
        first.result()
        assert post(url, asked("a")).status_code == 200
    assert Scripted.calls == [["wait"], ["a"]]


@pytest.mark.parametrize(("prompt", "words"), [("broken", "failed on every picture: RuntimeError: the card is broken")])
def test_a_broken_reward_is_the_servers_fault(prompt, words):
    with scripted() as url:
        answer = post(url, asked(prompt))
        assert (answer.status_code, words in answer.json()["detail"]) == (500, True)


def test_there_are_no_other_pages(plain):
    assert [httpx.get(f"{plain}/{page}").status_code for page in ("", "docs", "redoc", "openapi.json", "score")] == [
        404,
        404,
        404,
        404,
        405,
    ]


# -------------------------------------------------------------------------------------------------------------- token


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", TOKEN)
    with server().background() as url:
        yield url


@pytest.mark.parametrize("given", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}", "Bearer é"])
def test_without_the_token_nothing_is_scored_or_told(guarded, given):
    headers = {} if given is None else {"authorization": given.encode()}
    answers = [
        post(guarded, asked("a"), BODY | headers),
        *(httpx.get(f"{guarded}/{page}", headers=headers) for page in ("known_answers", "metrics")),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    health = httpx.get(f"{guarded}/health", headers=headers)
    assert health.status_code == (200 if given is None else 401)
    assert set(health.json()) == ({"status"} if given is None else {"detail"})
    assert not any(TOKEN in answer.text for answer in [*answers, health])


def test_with_the_token_everything_is(guarded):
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert post(guarded, asked("a"), BODY | headers).status_code == 200
    assert httpx.get(f"{guarded}/health", headers=headers).json()["weights"] == {"brightness": 1.0}


def test_requests_without_the_token_take_nobodys_place(monkeypatch):
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", TOKEN)
    with server(limits=Limits(requests=1)).background() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(f"POST /score HTTP/1.1\r\nhost: {host}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: 1000\r\n\r\n".encode())
            time.sleep(0.1)
            assert post(url, asked("a"), BODY | {"authorization": f"Bearer {TOKEN}"}).status_code == 200
            assert b" 401 " in raw.recv(4096)


def test_an_address_that_others_reach_needs_a_token_of_some_length(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"host '0\.0\.0\.0' can be reached from other machines, which needs a token: export FLOWRL_REWARD_TOKEN="
    ):
        server(host="0.0.0.0").run()
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", "short")
    with pytest.raises(ConfigError, match="has 5 characters, at least 16 are needed"):
        server(host="0.0.0.0").run()


def test_without_a_token_a_foreign_name_for_this_machine_is_refused(plain):
    for name, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200)):
        assert post(plain, asked("a"), BODY | {"host": name}).status_code == status


# ----------------------------------------------------------------------------------------------------- what it tells


def test_health_says_what_is_served_and_how_busy_it_is(plain):
    health = httpx.get(f"{plain}/health").json()
    assert health["status"] == "ready"
    assert (health["reward"], health["weights"], health["needs_groups"]) == ("Brightness", {"brightness": 1.0}, False)
    assert health["limits"]["pictures"] == 16
    assert {"requests", "rows", "rows_missing", "batches", "jobs", "reward_seconds", "rows_waiting"} <= set(health["load"])


def test_metrics_count_requests_rows_and_time():
    with scripted() as url:
        for body in (asked("a", "bad"), asked("c"), b"noise"):
            post(url, body)
        text = httpx.get(f"{url}/metrics").text
    values = dict(re.findall(r"^flowrl_reward_(\S+) (\S+)$", text, flags=re.MULTILINE))
    assert {name: float(values[name]) for name in ('requests_total{status="200"}', 'requests_total{status="400"}')} == {
        'requests_total{status="200"}': 2,
        'requests_total{status="400"}': 1,
    }
    assert [float(values[f"{name}_total"]) for name in ("rows", "rows_missing", "batches", "jobs")] == [3, 1, 2, 2]


class Zero:
    weights: ClassVar = {"zero": 1.0}

    def __call__(self, samples, prompts):
        return RewardBatch({"zero": torch.zeros(len(prompts))})

    def known_answers(self):
        return [KnownAnswer.of_pictures("light and dark", torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)]), "a square")]


def test_known_answers_are_scored_by_the_server():
    with server(self_test=True).background() as url:
        (report,) = httpx.get(f"{url}/known_answers", timeout=20).json()["reports"]
    assert report == json.loads(json.dumps(dataclasses.asdict(run_self_test(Brightness()))))
    assert report["problems"] == []


def test_a_reward_that_fails_its_self_test_is_not_served_unless_told_to():
    with (
        pytest.raises(RewardError, match=r"fails its self-test: Zero: every score is 0, .* \(self_test: false"),
        server(Zero(), self_test=True).background(),
    ):
        pass
    with server(Zero()).background() as url:
        assert client(url, weights={"zero": 1.0}).self_test().problems[0].startswith(f"{url}: Zero: every score is 0")


def test_two_servers_of_one_reward_have_one_identity_and_another_reward_has_another():
    def told(reward):
        return server(reward).about()["identity"]

    assert told(JpegCompressibility()) == told(JpegCompressibility()) != told(JpegCompressibility(quality=50))
    assert told(Brightness()) != told(CompositeReward(rewards=(Brightness(),)))


def test_samples_are_scored_on_the_servers_device():
    seen = []

    class Where:
        weights: ClassVar = {"a": 1.0}

        def __call__(self, samples, prompts):
            seen.append(samples.device.type)
            return RewardBatch({"a": torch.zeros(len(prompts))})

    with server(Where(), device="meta").background() as url:
        assert post(url, asked("a")).json()["parts"] == {"a": [0.0]}
    assert seen == ["meta"]


def test_group_rewards_are_served(plain):
    with server(GroupSize()).background() as url:
        question = Question(samples=pictures(3), prompts=["a"] * 3, groups=torch.tensor([4, 4, 9]))
        assert post(url, pack_question(question, "uint8")).json()["parts"] == {"members": [2.0, 2.0, 1.0]}


# ------------------------------------------------------------------------------------------------------- start and end


def test_an_address_that_is_taken_is_refused_before_the_reward_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .* choose another port"):
            server(port=port).run()


def test_while_the_reward_loads_the_server_says_so():
    class Slow(Zero):
        def known_answers(self):
            Scripted.gate.wait(20)
            return []

    port, ended = free_port(), threading.Event()

    def serve():
        with server(Slow(), port=port, self_test=True).background():
            ended.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{port}"

    def status():
        try:
            return httpx.get(f"{url}/health").json()["status"]
        except httpx.ConnectError:
            return None

    until(lambda: status() == "loading")
    assert post(url, asked("a")).json()["detail"] == "the server is loading; come again"
    Scripted.gate.set()
    until(lambda: status() == "ready")
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 70_000}, "port must be 0 to 65535, got 70000"),
        ({"batch": 0}, "batch must be >= 1"),
        ({"window_ms": float("nan")}, "window_ms >= 0"),
        ({"identity": "my reward"}, "identity must be letters, digits, dots, dashes and underscores, got 'my reward'"),
        ({"host": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid"),
    ],
    ids=["port", "batch", "window", "identity", "host"],
)
def test_a_server_that_cannot_be_is_refused(fields, message, monkeypatch):
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match=message):
        server(**fields).run()


@pytest.mark.parametrize("scale", [BatchScale(), RunningScale()], ids=lambda scale: type(scale).__name__)
def test_a_reward_that_normalises_over_the_batch_is_not_served(scale):
    reward = CompositeReward(rewards=(Brightness(),), normalise={"brightness": scale})
    with pytest.raises(ConfigError, match=f"'brightness' is put on a {type(scale).__name__}, which cannot be served"):
        server(CompositeReward(rewards=(reward,)))
    assert server(CompositeReward(rewards=(Brightness(),), normalise={"brightness": FixedScale(mean=0.5, std=1.0)}))


def test_limits_must_be_positive():
    with pytest.raises(ConfigError, match="pictures must be > 0, got 0"):
        Limits(pictures=0)


def test_a_config_describes_a_server_and_the_command_wants_one(capsys):
    assert isinstance(
        instantiate(load_config("rewards/serve_digits", ["limits={target: rewards.server.Limits, pictures: 5}"])), RewardServer
    )
    assert main(["serve-reward", "smoke/digits_g2rpo"]) == 2
    assert "describes a RLTrainer, not a rewards.server.RewardServer" in capsys.readouterr().err


def test_what_is_answered_is_json_even_where_a_score_is_not_a_number():
    with scripted() as url:
        text = post(url, asked(*PROMPTS[:2], "nan")).text
    assert json.loads(text, parse_constant=pytest.fail)["parts"]["bright"][2] is None
