"""Requests that wait are scored together; a bad row, a bad request or one that nobody waits for costs the others nothing."""

import time
from concurrent.futures import CancelledError
from typing import ClassVar

import pytest
import torch
from serving import GroupSize, Scripted, local, pictures, until

from flowrl.errors import CheckpointError, RewardError
from flowrl.rl import Prompt, RewardBatch
from rewards.remote.rows import row_batches
from rewards.remote.wire import Question
from rewards.server.batching import ExpiredError, Job, RewardThread
from rewards.server.load import Load
from rewards.server.scoring import ScoringFaultError, score_rows


@pytest.fixture(autouse=True)
def _fresh():
    Scripted.reset()
    yield
    Scripted.gate.set()


def scored(prompts, reward=None, groups=None, batch=8):
    rows = len(prompts)
    numbers = torch.arange(rows) if groups is None else torch.tensor(groups)
    return score_rows(reward or Scripted(), pictures(rows), prompts, numbers, batch=batch, device="cpu")


# ------------------------------------------------------------------------------------------------------- single rows


def test_rows_that_raise_get_nan_and_the_reason_and_the_others_their_scores():
    answer = scored(["a", "bad", "c", "d", "broken", "f", "g"])
    good = [0, 2, 3, 5, 6]
    assert torch.equal(answer.parts["bright"][good], local(pictures(7))[good])
    assert answer.parts["bright"][[1, 4]].isnan().all()
    assert answer.reasons == {1: "ValueError: a prompt is bad", 4: "RuntimeError: the card is broken"}


def test_a_score_that_is_no_number_has_a_reason_too():
    answer = scored(["nan", "a", "inf"])
    assert answer.reasons == {0: "part 'bright' is nan", 2: "part 'bright' is inf"}


def test_a_batch_that_does_not_fit_into_memory_is_scored_in_smaller_ones():
    answer = scored(["a"] * 8, Scripted(most=2))
    assert torch.equal(answer.parts["bright"], local(pictures(8)))
    assert sorted(len(call) for call in Scripted.calls) == [2, 2, 2, 2, 4, 4, 8]


def test_no_call_has_more_rows_than_the_batch():
    scored(["a"] * 7, batch=3)
    assert sorted(len(call) for call in Scripted.calls) == [1, 3, 3]


def test_a_reward_that_fails_on_every_row_by_itself_is_a_fault_and_by_the_rows_is_not():
    with pytest.raises(ScoringFaultError, match="failed on every picture: RuntimeError: the card is broken"):
        scored(["broken", "broken", "broken"])
    assert scored(["bad", "bad"]).parts["bright"].isnan().all()


@pytest.mark.parametrize("error", [RewardError("the judge is gone"), CheckpointError("no weights")])
def test_what_fewer_rows_cannot_mend_is_not_tried_row_by_row(error):
    calls = []

    class Gone:
        weights: ClassVar = {"a": 1.0}

        def __call__(self, samples, prompts):
            calls.append(len(prompts))
            raise error

    with pytest.raises(RewardError, match=str(error)):
        scored(["a"] * 8, Gone())
    assert calls == [8]


@pytest.mark.parametrize(
    "returned", [None, RewardBatch({"b": torch.zeros(1)}), RewardBatch({"a": torch.zeros(5)})], ids=["none", "name", "rows"]
)
def test_a_reward_that_returns_something_else_is_a_fault(returned):
    class Odd:
        weights: ClassVar = {"a": 1.0}

        def __call__(self, samples, prompts):
            return returned

    with pytest.raises(ScoringFaultError, match="must return a RewardBatch of"):
        scored(["a", "b"], Odd())


def test_groups_stay_whole_and_a_bad_one_is_left_out_alone():
    answer = scored(["a", "b", "bad", "d", "e"], GroupSize(), groups=[5, 9, 9, 5, 5], batch=2)
    assert answer.parts["members"].nan_to_num(-1).tolist() == [3, -1, -1, 3, 3]
    assert set(answer.reasons) == {1, 2}


def test_rows_are_cut_into_batches_and_groups_only_between_each_other():
    def sizes(whole):
        return [[unit.tolist() for unit in batch] for batch in row_batches(torch.tensor([3, 1, 3, 1, 2]), 3, whole=whole)]

    assert sizes(whole=False) == [[[0], [1], [2]], [[3], [4]]]
    assert sizes(whole=True) == [[[0, 2]], [[1, 3], [4]]]


# --------------------------------------------------------------------------------------------------------- the thread


@pytest.fixture
def thread():
    made = RewardThread(Scripted(), device="cpu", batch=8, window_s=0.0, load=Load())
    made.start()
    yield made
    Scripted.gate.set()
    assert made.stop(10)


def job(*prompts, side=8, groups=None, seconds=60.0):
    numbers = torch.zeros(len(prompts), dtype=torch.long) if groups is None else torch.tensor(groups)
    samples = pictures(len(prompts), side, seed=sum(map(ord, prompts[0])))
    return Job(question=Question(samples=samples, prompts=prompts, groups=numbers), deadline=time.monotonic() + seconds)


def busy(thread):
    """The thread scores, until the gate opens, and what comes now waits."""
    first = thread.submit(job("wait"))
    until(lambda: Scripted.calls)
    return first


def test_what_waits_is_scored_in_one_call_and_everyone_gets_their_own_scores(thread):
    busy(thread)
    jobs = [job("a", "b"), job("c"), job("d", "e", "f")]
    answers = [thread.submit(one) for one in jobs]
    assert thread.waiting == 6
    Scripted.gate.set()
    for one, answer in zip(jobs, answers, strict=True):
        torch.testing.assert_close(answer.result(10).parts["bright"], local(one.question.samples))
    assert Scripted.calls == [["wait"], ["a", "b", "c", "d", "e", "f"]]
    numbers = thread.load.numbers()
    assert (numbers["batches"], numbers["jobs"], numbers["rows"], numbers["rows_missing"]) == (2, 4, 7, 0)


def test_pictures_of_different_sizes_and_more_than_a_batch_are_scored_apart(thread):
    busy(thread)
    waiting = [job("a", "b"), job("c", side=16), job("d", "e", "f", "g", "h", "i"), job("j", "k")]
    answers = [thread.submit(one) for one in waiting]
    Scripted.gate.set()
    assert [len(answer.result(10).parts["bright"]) for answer in answers] == [2, 1, 6, 2]
    assert Scripted.calls[1:] == [["a", "b", "d", "e", "f", "g", "h", "i"], ["c"], ["j", "k"]]


def test_a_bad_row_of_one_request_costs_the_other_requests_nothing(thread):
    busy(thread)
    answers = [thread.submit(one) for one in (job("a", "bad"), job("broken"), job("c"))]
    Scripted.gate.set()
    assert [answer.result(10).reasons for answer in answers] == [
        {1: "ValueError: a prompt is bad"},
        {0: "RuntimeError: the card is broken"},
        {},
    ]


def test_groups_of_different_requests_with_the_same_number_are_not_mixed():
    Scripted.gate.clear()
    thread = RewardThread(GroupSize(), device="cpu", batch=8, window_s=0.0, load=Load())
    answers = [thread.submit(one) for one in (job("a", "b", "c", groups=[0, 0, 4]), job("d", "e", groups=[0, 0]))]
    thread.start()
    assert [answer.result(10).parts["members"].tolist() for answer in answers] == [[2, 2, 1], [2, 2]]
    assert thread.load.numbers()["batches"] == 1
    assert thread.stop(10)


def test_what_nobody_waits_for_is_not_scored(thread):
    busy(thread)
    late, cancelled, good = (thread.submit(one) for one in (job("late", seconds=0.01), job("gone"), job("a")))
    assert cancelled.cancel()
    time.sleep(0.02)
    Scripted.gate.set()
    good.result(10)
    with pytest.raises(ExpiredError, match="waited longer for its turn"):
        late.result(10)
    with pytest.raises(CancelledError):
        cancelled.result(10)
    assert Scripted.calls == [["wait"], ["a"]]


def test_a_request_waits_a_moment_for_others_that_are_likely_to_come():
    thread = RewardThread(Scripted(), device="cpu", batch=2, window_s=5.0, load=Load())
    thread.start()
    start = time.monotonic()
    assert len(thread.submit(job("alone")).result(10).parts["bright"]) == 1
    assert time.monotonic() - start < 2.0, "where none is arriving, nobody waits"
    thread.arriving = 1
    one = thread.submit(job("a"))
    until(lambda: thread.waiting == 0)
    start = time.monotonic()
    assert all(len(answer.result(10).parts["bright"]) == 1 for answer in (one, thread.submit(job("b"))))
    assert time.monotonic() - start < 2.0, "a full batch does not wait for the window to end"
    thread.arriving = 0
    answers = []
    for name in "cd":  # the askers of the latest batch are expected to ask again
        answers.append(thread.submit(job(name)))
        time.sleep(0.1)
    assert all(len(answer.result(10).parts["bright"]) == 1 for answer in answers)
    assert Scripted.calls == [["alone"], ["a", "b"], ["c", "d"]]
    assert thread.stop(10)


def test_a_failure_is_told_to_everyone_and_the_thread_lives_on(thread):
    broken = thread.submit(job("broken"))
    with pytest.raises(ScoringFaultError):
        broken.result(10)
    assert len(thread.submit(job("a")).result(10).parts["bright"]) == 1
    assert thread.load.numbers()["rows_failed"] == 1
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0).result(10)
    assert thread.call(lambda: 3).result(10) == 3


def test_stopping_scores_what_waits_and_takes_nothing_more(thread):
    first = busy(thread)
    waiting = thread.submit(job("a"))
    assert not thread.stop(0.01), "the thread is busy"
    refused = thread.submit(job("b"))
    Scripted.gate.set()
    assert thread.stop(10)
    assert len(waiting.result(0).parts["bright"]) == len(first.result(0).parts["bright"]) == 1
    with pytest.raises(ExpiredError, match="shutting down"):
        refused.result(0)


def test_facts_reach_the_reward(thread):
    assert thread.submit(job(Prompt("fact", facts={"score": 0.25}), "a")).result(10).parts["bright"][0] == 0.25
