"""The client: other servers when one fails, an end to waiting, and never a score that no server gave."""

import dataclasses
import json
import logging
import os
import pickle
import re
import threading
import time
from datetime import datetime

import pytest
import torch
from serving import HEALTHY, GroupSize, Scripted, client, free_port, impostor, local, pictures, say, server, until

from flowrl.config import instantiate
from flowrl.errors import ConfigError, RewardError
from flowrl.rl import Prompt, submit_scores
from flowrl.testing import check_reward
from flowrl.train.describe import describe
from rewards import Brightness, CompositeReward, JpegCompressibility
from rewards.remote.servers import Backoff, Servers
from rewards.self_test import run_self_test
from rewards.server import Limits

TOKEN = "0123456789abcdef-secret"
DEAD = f"http://127.0.0.1:{free_port()}"


@pytest.fixture(autouse=True)
def _fresh():
    Scripted.reset()
    yield
    Scripted.gate.set()


@pytest.fixture(scope="module")
def bright():
    with server().background() as url:
        yield url


@pytest.fixture(scope="module")
def other():
    with server().background() as url:
        yield url


@pytest.fixture
def scripted():
    with server(Scripted()).background() as url:
        yield url


def scores(reward, rows=8):
    return reward(pictures(rows), ["a"] * rows).parts[next(iter(reward.weights))]


# ------------------------------------------------------------------------------------------------------------ scoring


def test_a_remote_reward_keeps_the_contract_of_a_reward(bright):
    check_reward(client(bright, batch=2), pictures(4), ["a", "b", "c", "d"])


def test_scores_are_those_of_the_reward_itself_to_the_bit_whatever_the_batch(bright, other):
    for batch in (1, 3, 100):
        assert torch.equal(scores(client(bright, other, batch=batch)), local(pictures(8)))


def test_a_pending_batch_works_while_the_caller_does_something_else(scripted):
    reward = client(scripted, weights={"bright": 1.0}, batch=2)
    pending = submit_scores(reward, pictures(4), ["wait", "a", "a", "a"], torch.arange(4))
    until(lambda: Scripted.calls)
    Scripted.gate.set()
    assert torch.equal(pending().parts["bright"], local(pictures(4)))


def test_whole_groups_are_sent_to_a_group_reward():
    with server(GroupSize()).background() as url:
        reward = client(url, weights={"members": 1.0}, needs_groups=True, batch=2)
        reward.check()
        groups = torch.tensor([0, 1, 0, 1, 0, 2])
        assert reward(pictures(6), ["a"] * 6, groups).parts["members"].tolist() == [3, 2, 3, 2, 3, 1]
        with pytest.raises(ValueError, match="compares the samples of a group; give groups"):
            reward(pictures(2), ["a"] * 2)


def test_facts_and_videos_are_sent(scripted):
    reward = client(scripted, weights={"bright": 1.0})
    videos = pictures(4).reshape(2, 2, 3, 8, 8)
    found = reward(videos, [Prompt("fact", facts={"score": -0.5}), "a"]).parts["bright"]
    torch.testing.assert_close(found, torch.stack([torch.tensor(-0.5), videos[1].mean()]))


def test_parts_that_are_not_asked_for_are_left_out():
    with server(CompositeReward(rewards=(Brightness(), JpegCompressibility()))).background() as url:
        reward = client(url, weights={"jpeg": 2.0})
        assert list(reward(pictures(2), ["a", "b"]).parts) == ["jpeg"]


def test_no_pictures_get_no_scores(bright):
    assert scores(client(bright), rows=0).shape == (0,)


def test_random_numbers_of_the_training_are_not_touched(bright):
    state = torch.get_rng_state()
    scores(client(DEAD, bright))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("samples", "prompts", "message"),
    [
        (torch.rand(2, 1, 4, 4), ["a", "b"], r"samples must be floating point \(batch, \[frame,\] 3, height, width\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"], "floating point"),
        (torch.rand(2, 3, 4, 4), ["a"], "got 2 samples, 1 prompts"),
    ],
    ids=["channels", "dtype", "count"],
)
def test_what_cannot_be_sent_is_refused(bright, samples, prompts, message):
    with pytest.raises(ValueError, match=message):
        client(bright)(samples, prompts)


# ---------------------------------------------------------------------------------------------------------- fail-over


def test_a_dead_server_costs_no_score_where_another_lives(bright, caplog):
    reward = client(DEAD, bright, batch=2)
    assert torch.equal(scores(reward), local(pictures(8)))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "one word about it, not one a request"
    assert warnings[0].startswith(f"reward server {DEAD} is down (ConnectError")
    assert warnings[0].endswith("; others take over")


def warned(caplog):
    ours = [record for record in caplog.records if record.name == "flowrl.rewards.remote"]
    return [record.getMessage() for record in ours if record.levelno > logging.DEBUG]


def test_a_server_that_stays_away_is_told_once_with_the_time_at_which_it_is_given_up(caplog):
    caplog.set_level(logging.DEBUG, "flowrl")
    reward = client(DEAD, batch=1, requests=4, retries=4, timeout_s=60.0)
    for _ in range(2):
        with pytest.raises(RewardError, match=r"asked 5 times"):
            scores(reward)
    (told,) = warned(caplog)
    found = re.fullmatch(
        rf"reward server {DEAD} is down \(ConnectError.*\); asking again, gives up at (\d\d:\d\d:\d\d) at the latest", told
    )
    ahead = datetime.strptime(found[1], "%H:%M:%S") - datetime.strptime(time.strftime("%H:%M:%S"), "%H:%M:%S")
    assert 55 <= ahead.total_seconds() % 86400 <= 61
    assert len(caplog.records) > 40, "every try is told to those who look for it"


def test_a_server_that_is_healthy_but_scores_nothing_does_not_come_and_go_in_the_log(caplog):
    caplog.set_level(logging.INFO, "flowrl")
    with impostor(lambda handler: say(handler, b'{"detail": "the card is broken"}', status=500)) as url, pytest.raises(RewardError):
        scores(client(url, retries=5))
    (told,) = warned(caplog)
    assert told.startswith(f"reward server {url} is down (status 500: the card is broken)")


def test_a_server_that_comes_back_is_used_again(bright, caplog):
    port = free_port()
    reward = client(f"http://127.0.0.1:{port}", bright, batch=1, requests=1)
    assert scores(reward).isfinite().all()
    with server(port=port).background():
        first, _ = reward._asker.servers
        until(lambda: scores(reward).isfinite().all() and first.trusted)
        assert first.failures == 0
        until(lambda: scores(reward).isfinite().all() and not first.down)
    assert [text for text in warned(caplog) if "back" in text] == [f"reward server {first.url} is back"]


def test_requests_are_spread_over_the_servers(bright, other):
    reward = client(bright, other, batch=1)
    reward.check()
    served = []
    ask = Servers.score

    def noted(self, server, body, timeout_s):
        served.append(server.url)
        return ask(self, server, body, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Servers, "score", noted)
        scores(reward, rows=16)
    assert set(served) == {bright, other}


def test_when_all_fail_the_error_tells_what_happened_on_which_server():
    with impostor(lambda handler: say(handler, b'{"detail": "the card is broken"}', status=500)) as url:
        start = time.monotonic()
        with pytest.raises(RewardError) as raised:
            scores(client(DEAD, url))
    message = str(raised.value)
    assert f"{DEAD} (asked 3 times): ConnectError: " in message
    assert f"{url} (asked 3 times): status 500: the card is broken" in message
    assert time.monotonic() - start < 5


def test_retries_end_even_with_many_batches_waiting():
    reward = client(DEAD, batch=1, requests=1, retries=3, backoff_s=0.1, timeout_s=0.1)
    start = time.monotonic()
    with pytest.raises(RewardError, match="no reward server gave scores"):
        scores(reward, rows=40)
    assert time.monotonic() - start < 3, "40 batches that pause one after another would take 14 s at least"


def test_a_busy_server_is_asked_again_until_it_has_time():
    with server(Scripted(), limits=Limits(requests=1)).background() as url:
        reward = client(url, weights={"bright": 1.0}, retries=50, batch=1, requests=4)
        threading.Timer(0.2, Scripted.gate.set).start()
        assert reward(pictures(4), ["wait", "a", "b", "c"]).parts["bright"].isfinite().all()


def test_pauses_double_up_to_the_longest_and_differ():
    backoff = Backoff(first_s=1.0, longest_s=5.0)
    pauses = [[backoff.pause_s(doublings) for _ in range(50)] for doublings in range(5)]
    for longest, drawn in zip([1, 2, 4, 5, 5], pauses, strict=True):
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    assert backoff.total_s(5) == 17
    assert backoff.pause_s(10_000) <= 5


# ------------------------------------------------------------------------------------- slow, broken and lying servers


def test_a_slow_server_is_given_up_for_another(bright):
    held = threading.Event()
    with impostor(lambda handler: held.wait(10), health=HEALTHY | {"identity": server().about()["identity"]}) as slow:
        start = time.monotonic()
        assert torch.equal(scores(client(slow, bright, timeout_s=0.3), rows=2), local(pictures(2)))
        assert time.monotonic() - start < 5
        held.set()


def test_an_answer_that_trickles_in_is_given_up():
    def trickle(handler):
        say(handler, b"", length=10_000)
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    with impostor(trickle) as url, pytest.raises(RewardError, match=r"its answer took longer than 0\.3 s"):
        scores(client(url, timeout_s=0.3, retries=0), rows=1)


ANSWERS = {
    "no JSON": b"<html>504</html>",
    "too few scores": json.dumps({"parts": {"brightness": [0.5]}, "reasons": {}}).encode(),
    "too many scores": json.dumps({"parts": {"brightness": [0.5] * 9}, "reasons": {}}).encode(),
    "another part": json.dumps({"parts": {"darkness": [0.5] * 8}, "reasons": {}}).encode(),
    "text for scores": json.dumps({"parts": {"brightness": ["0.5"] * 8}, "reasons": {}}).encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_is_none_is_never_a_score(answer):
    with impostor(lambda handler: say(handler, answer)) as url, pytest.raises(RewardError, match=r"no reward server gave scores.*answer"):
        scores(client(url, retries=0))


def test_an_answer_that_breaks_off_is_never_a_score():
    def broken(handler):
        say(handler, b'{"parts": {"brightness": [0.5', length=500)
        handler.close_connection = True

    with impostor(broken) as url, pytest.raises(RewardError, match="RemoteProtocolError"):
        scores(client(url, retries=0))


def test_a_server_that_now_serves_another_reward_is_not_believed(caplog):
    port = free_port()
    reward = client(f"http://127.0.0.1:{port}", weights={"jpeg": 1.0})
    with server(JpegCompressibility(), port=port).background():
        scores(reward, rows=2)
    with (
        server(JpegCompressibility(quality=50), port=port).background(),
        pytest.raises(RewardError, match=r"configured in another way|serves another reward than it did"),
    ):
        scores(reward, rows=2)


def test_an_answer_of_another_reward_is_not_believed_even_from_a_trusted_server():
    def imposed(handler):
        handler.send_response(200)
        body = json.dumps({"parts": {"brightness": [0.5] * 2}, "reasons": {}}).encode()
        handler.send_header("content-length", str(len(body)))
        handler.send_header("x-flowrl-reward", "2")
        handler.end_headers()
        handler.wfile.write(body)

    with impostor(imposed) as url, pytest.raises(RewardError, match="serves another reward than it did"):
        scores(client(url, retries=0), rows=2)


def test_a_request_that_is_refused_is_not_repeated(caplog):
    with server(limits=Limits(pictures=2)).background() as url:
        reward = client(url, retries=8, backoff_s=5.0)
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"\(asked once\): status 413: got 8 pictures, at most 2 are allowed"):
            scores(reward)
        assert time.monotonic() - start < 4
        assert scores(client(url, batch=2)).isfinite().all()


# ---------------------------------------------------------------------------------------------------- missing scores


def test_a_row_without_a_score_stays_nan_and_is_told_with_its_reason(scripted, caplog):
    reward = client(scripted, weights={"bright": 1.0}, batch=2)
    found = reward(pictures(5), ["nan", "a", "bad", "d", "inf"]).parts["bright"]
    assert found.isnan().tolist() == [True, False, True, False, True]
    assert torch.equal(found[[1, 3]], local(pictures(5))[[1, 3]])
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("3 of 5 samples have no score")
    assert "1 times: ValueError: a prompt is bad" in told


def test_a_batch_that_no_server_scores_is_nan_and_the_others_keep_their_scores(scripted, caplog):
    reward = client(scripted, weights={"bright": 1.0}, batch=2)
    found = reward(pictures(4), ["broken", "broken", "a", "b"]).parts["bright"]
    assert found.isnan().tolist() == [True, True, False, False]
    assert "2 of 4 samples have no score" in caplog.text
    assert "the card is broken" in caplog.text


# ----------------------------------------------------------------------------------------------------------- the check


def test_the_check_passes_where_one_server_is_ready_and_tells_of_the_others(bright, caplog):
    client(bright, DEAD).check()
    assert f"reward server {DEAD}: ConnectError" in caplog.text


def test_the_check_waits_for_a_server_that_starts_late(caplog):
    caplog.set_level(logging.INFO, "flowrl")
    port, ended = free_port(), threading.Event()

    def serve():
        time.sleep(0.2)
        with server(port=port).background():
            ended.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    client(f"http://127.0.0.1:{port}", start_within_s=20.0).check()
    waiting, ready = warned(caplog)
    assert re.match(r"waiting for a reward server, gives up at \d\d:\d\d:\d\d: reward server http", waiting)
    assert ready == "a reward server is ready"
    ended.set()
    thread.join()


def test_the_check_does_not_wait_for_ever():
    with pytest.raises(RewardError, match=f"reward server {DEAD}: ConnectError"):
        client(DEAD, start_within_s=0.1).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"brigtness": 1.0}}, "it scores no part 'brigtness'; did you mean 'brightness'"),
        ({"needs_groups": True}, "does not compare samples of a group; set needs_groups=False"),
    ],
    ids=["part", "groups"],
)
def test_the_check_refuses_another_reward_at_once(bright, fields, message):
    start = time.monotonic()
    with pytest.raises(RewardError, match=message):
        client(bright, DEAD, start_within_s=60.0, **fields).check()
    assert time.monotonic() - start < 10


def test_the_check_refuses_servers_that_differ():
    message = "its JpegCompressibility is configured in another way"
    one, two = server(JpegCompressibility()), server(JpegCompressibility(quality=50))
    with one.background() as first, two.background() as second, pytest.raises(RewardError, match=f"{second}: {message}"):
        client(first, second, weights={"jpeg": 1.0}).check()


def test_the_check_refuses_another_version_of_the_protocol():
    message = "it speaks version 2 of the protocol, this client 1; install the same version"
    with impostor(lambda handler: None, health=HEALTHY | {"protocol": 2}) as url, pytest.raises(RewardError, match=message):
        client(url).check()


def test_servers_that_say_that_they_are_the_same_are_believed():
    one, two = (server(JpegCompressibility(quality=quality), identity="jpeg") for quality in (50, 51))
    with one.background() as first, two.background() as second:
        client(first, second, weights={"jpeg": 1.0}).check()


def test_the_check_tells_of_weights_that_differ(caplog):
    with server(CompositeReward(rewards=(Brightness(), JpegCompressibility()))).background() as url:
        client(url, weights={"brightness": 0.5}).check()
    assert "gives part 'brightness' the weight 1, here it counts 0.5" in caplog.text


def test_a_wrong_or_missing_token_ends_the_check_at_once(monkeypatch):
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", TOKEN)
    with server().background() as url:
        client(url).check()
        assert scores(client(url)).isfinite().all()
        for token, message in (
            ("another-token-of-16", "status 401: the token is wrong"),
            ("", "tells more than its status only for its token"),
        ):
            monkeypatch.setenv("FLOWRL_REWARD_TOKEN", token)
            with pytest.raises(RewardError, match=message) as raised:
                client(url, start_within_s=60.0).check()
            assert TOKEN not in str(raised.value)
            with pytest.raises(RewardError, match=message):
                scores(client(url, backoff_s=60.0))


def test_what_is_no_reward_server_is_told_as_such():
    with impostor(lambda handler: None, health={"hello": "world"}) as url, pytest.raises(RewardError, match="not a flowrl reward server's"):
        client(url).check()


def test_a_self_test_on_the_server_is_the_rewards_own():
    with server().background() as url:
        report = client(url).self_test()
    assert (report.cases, report.problems) == (run_self_test(Brightness()).cases, ())
    (problem,) = client(DEAD).self_test().problems
    assert problem.startswith(f"{DEAD}: ConnectError")


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"servers": ()}, "servers must be different addresses"),
        ({"servers": ("127.0.0.1:8123",)}, "servers must be different addresses such as http://"),
        ({"servers": ("http://a", "http://a/")}, "servers must be different"),
        ({"weights": {}}, "weights must name the parts"),
        ({"weights": {"a": float("inf")}}, "weights must name the parts"),
        ({"batch": 0}, "batch must be > 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be > 0"),
        ({"retries": -1}, "retries and start_within_s must be >= 0"),
    ],
    ids=["none", "no address", "twice", "no parts", "infinite", "batch", "time-out", "retries"],
)
def test_a_client_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(client(DEAD), **fields)


def test_a_config_describes_a_client_and_never_holds_the_token(monkeypatch):
    monkeypatch.setenv("FLOWRL_REWARD_TOKEN", TOKEN)
    config = {"target": "rewards.RemoteReward", "servers": ["http://a:1", "http://b:2/"], "weights": {"clip": 1}, "wire": "png"}
    reward = instantiate(config)
    assert reward.servers == ("http://a:1", "http://b:2")
    assert instantiate(describe(reward)) == reward
    assert TOKEN not in json.dumps(describe(reward)) + repr(reward)


def test_a_client_can_be_copied_to_another_process(bright):
    reward = client(bright)
    scores(reward)
    assert torch.equal(scores(pickle.loads(pickle.dumps(reward))), local(pictures(8)))


def test_a_forked_process_makes_its_own_connections(bright):
    reward = client(bright, batch=2)
    expected = scores(reward)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if torch.equal(scores(reward), expected) else 1)
    assert torch.equal(scores(reward), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
