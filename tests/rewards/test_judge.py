"""Vision-language models as judges, played by a server on this machine."""

import random
import socket
import threading
import time

import pytest
import torch
from chat_server import Reply, chat_server

from flowrl.config import instantiate
from flowrl.errors import RewardError
from flowrl.rl import submit_scores
from flowrl.testing import check_reward
from flowrl.train.describe import describe
from rewards import AspectMarks, ChatEndpoint, FinalMark, Marks, VLMComparison, VLMJudge
from rewards.comparison import read_preference
from rewards.self_test import run_self_test

GREY = (0.2, 0.4, 0.6, 0.8)


def grey(*levels):
    return torch.stack([torch.full((3, 4, 6), level) for level in levels])


def at(url, **others):
    return ChatEndpoint(**{"model": "judge", "url": url, "backoff_s": 0.001, "max_backoff_s": 0.01, "timeout_s": 5.0} | others)


def brightness(seen, number):
    """A judge that likes white: 1 for black, 5 for white."""
    return f"sky (object): 1\nFinal Score: {1 + 4 * seen.pictures[0].mean():.2f}"


def brighter(seen, number):
    one, other = (picture.mean() for picture in seen.pictures)
    return "I looked. " + ("Both images are equally good." if one == other else f"Image {1 if one > other else 2} is better than Image 0.")


@pytest.fixture
def prompts():
    return [f"picture {number}" for number in range(4)]


# ----------------------------------------------------------------------------------------------------------- pointwise


def test_each_picture_is_shown_with_its_own_prompt_and_gets_its_own_mark(prompts):
    with chat_server(brightness) as (url, seen):
        scores = VLMJudge(endpoint=at(url, requests=2))(grey(*GREY), prompts).parts
    assert list(scores) == ["judge"]
    torch.testing.assert_close(scores["judge"], 1 + 4 * torch.tensor(GREY), atol=0.02, rtol=0)
    by_prompt = {request.text.partition("Caption: [")[2].rstrip("]"): request for request in seen}
    assert sorted(by_prompt) == prompts
    for level, prompt in zip(GREY, prompts, strict=True):
        (picture,) = by_prompt[prompt].pictures
        assert picture.shape == (4, 6, 3)
        assert abs(picture - level).max() < 0.003


def test_a_request_says_model_temperature_length_and_what_the_user_adds(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with chat_server(brightness) as (url, seen):
        VLMJudge(endpoint=at(url, key_env="JUDGE_KEY", max_tokens=7, extra={"seed": 3}))(grey(0.5), ["x"])
        VLMJudge(endpoint=at(url, key_env="NO_KEY_OF_THIS_NAME", max_tokens=None, temperature=None))(grey(0.5), ["x"])
    first, second = ({key: value for key, value in request.body.items() if key != "messages"} for request in seen)
    assert first == {"model": "judge", "temperature": 0.0, "max_tokens": 7, "seed": 3}
    assert second == {"model": "judge"}
    assert [request.headers.get("Authorization") for request in seen] == ["Bearer secret", None]


def test_the_judge_keeps_the_contract_of_a_reward_and_of_a_config(prompts):
    with chat_server(brightness) as (url, _):
        reward = VLMJudge(endpoint=at(url))
        check_reward(reward, grey(*GREY), prompts)
    assert instantiate(describe(reward)) == reward


def test_three_aspects_are_three_parts():
    text = "Alignment Score (1-5): 4.5\nCoherence Score (1-5): 3\n**Style Score (1-5)**: **2**"
    with chat_server(lambda seen, number: text) as (url, _):
        scores = VLMJudge(endpoint=at(url), marks=AspectMarks())(grey(0.5), ["x"]).parts
    assert {name: part.item() for name, part in scores.items()} == {"judge_alignment": 4.5, "judge_coherence": 3.0, "judge_style": 2.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Final Score: 4", [4.0]),
        ("final score : 3.5/5", [3.5]),
        ("**Final Score:** 2", [2.0]),
        ("**Final Score (1-5):** 2.25.", [2.25]),
        ("I would say Final Score: 2, no: Final Score: 5", [5.0]),
        ("Final Score:\n\n4", [4.0]),
        ("Final Score: 7", None),
        ("Final Score: 0", None),
        ("Final Score: good", None),
        ("A score of 4", None),
    ],
)
def test_the_last_mark_in_range_counts(text, expected):
    assert FinalMark().read(text) == expected


def test_a_question_of_ones_own():
    marks = Marks(question="How {red} is {prompt}? Red: 0 to 10", labels={"red": "Red"}, lowest=0, highest=10)
    with chat_server(lambda seen, number: "Red: 10") as (url, seen):
        assert VLMJudge(endpoint=at(url), marks=marks)(grey(0.5), ["a {brace}"]).parts["red"].item() == 10
    assert seen[0].text == "How {red} is a {brace}? Red: 0 to 10"
    with pytest.raises(ValueError, match=r"question must contain \{prompt\}"):
        Marks(question="How red?", labels={"red": "Red"})


# ---------------------------------------------------------------------------------------------------------- what fails


def test_rate_limits_and_faults_are_waited_out(prompts):
    trouble = {
        0: Reply(status=429, body='{"error": {"message": "slow down"}}', headers={"Retry-After": "0.001"}),
        1: Reply(status=503, body="busy", headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        2: Reply(body="<html>a proxy's page</html>"),
        3: Reply(body='{"choices": []}'),
    }
    with chat_server(lambda seen, number: trouble.get(number) or brightness(seen, number)) as (url, seen):
        scores = VLMJudge(endpoint=at(url, requests=1))(grey(*GREY), prompts).parts["judge"]
    torch.testing.assert_close(scores, 1 + 4 * torch.tensor(GREY), atol=0.02, rtol=0)
    assert len(seen) == len(GREY) + len(trouble)


def test_the_server_says_how_long_to_wait_and_is_not_waited_for_forever():
    busy = Reply(status=429, headers={"Retry-After": "3600"})
    with chat_server(lambda seen, number: "Final Score: 3" if number else busy) as (url, _):
        start = time.perf_counter()
        assert VLMJudge(endpoint=at(url, max_backoff_s=0.05))(grey(0.5), ["x"]).parts["judge"].item() == 3
        assert 0.05 <= time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("I cannot say."), "its answer cannot be read: 'I cannot say.'"),
        (Reply("Final Score: 11"), "cannot be read"),
        (Reply(""), "an empty answer; are max_tokens used up"),
        (Reply(status=400, body='{"error": {"message": "picture refused"}}'), "status 400: picture refused"),
        (Reply(status=500, body="no memory"), "status 500: no memory"),
        (Reply(body="[]"), "no chat completion"),
    ],
    ids=["prose", "out of range", "empty", "refused", "fault", "no completion"],
)
def test_a_picture_without_an_answer_has_no_score_and_the_others_have_theirs(reply, reason, prompts, caplog):
    def answer(seen, number):
        return reply if "picture 2" in seen.text else brightness(seen, number)

    with chat_server(answer) as (url, _):
        scores = VLMJudge(endpoint=at(url, retries=1))(grey(*GREY), prompts).parts["judge"]
    assert scores.isnan().tolist() == [False, False, True, False]
    (record,) = caplog.records
    assert "judge left 1 of 4 questions without an answer" in record.getMessage()
    assert reason in record.getMessage()


def test_an_answer_that_cannot_be_read_is_asked_for_again():
    with chat_server(lambda seen, number: "Hm." if not number else "Final Score: 3") as (url, seen):
        assert VLMJudge(endpoint=at(url))(grey(0.5), ["x"]).parts["judge"].item() == 3
    assert len(seen) == 2


def test_no_answer_at_all_is_an_error_and_not_a_batch_of_nan(prompts):
    failing = chat_server(lambda seen, number: Reply(status=500, body="no memory"))
    with failing as (url, seen), pytest.raises(RewardError, match=r"judge at .* answered none of 4 questions: status 500: no memory"):
        VLMJudge(endpoint=at(url, requests=2, retries=2))(grey(*GREY), prompts)
    assert len(seen) < 12  # four questions of three tries each: what had not begun when two had failed is not asked


def test_a_server_that_is_not_there_is_given_up_quickly():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.perf_counter()
    with pytest.raises(RewardError, match=r"answered none of 64 questions: .*ConnectError"):
        VLMJudge(endpoint=at(url, retries=2, requests=4))(grey(*[0.5] * 64), ["x"] * 64)
    assert time.perf_counter() - start < 5
    with pytest.raises(RewardError, match=r"does not answer .*is the model served there\?"):
        VLMJudge(endpoint=at(url)).check()


def test_a_slow_server_costs_one_picture_and_not_the_run(prompts):
    hold = threading.Event()

    def answer(seen, number):
        if "picture 1" in seen.text:
            hold.wait(5)
        return brightness(seen, number)

    with chat_server(answer) as (url, _):
        start = time.perf_counter()
        scores = VLMJudge(endpoint=at(url, timeout_s=0.3, retries=0))(grey(*GREY), prompts).parts["judge"]
        assert time.perf_counter() - start < 3
        hold.set()
    assert scores.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("status", "message"), [(401, r"refuses the key .*wrong key; the key is read from \$JUDGE_KEY"), (404, "knows no such model or path")]
)
def test_a_refused_key_or_model_ends_it_at_once(status, message, prompts):
    refusing = chat_server(lambda seen, number: Reply(status=status, body='{"error": {"message": "wrong key"}}'))
    with refusing as (url, seen), pytest.raises(RewardError, match=message):
        VLMJudge(endpoint=at(url, requests=1, key_env="JUDGE_KEY"))(grey(*GREY), prompts)
    assert len(seen) <= 2


def test_the_endpoint_is_checked_before_a_run():
    with chat_server(brightness, models=("judge", "other")) as (url, seen):
        VLMJudge(endpoint=at(url)).check()
        with pytest.raises(RewardError, match=r"has no model 'jury'; it has judge, other"):
            VLMComparison(endpoint=at(url, model="jury")).check()
    assert seen == []


def test_a_picture_that_is_not_finite_is_not_shown(prompts):
    pictures = grey(*GREY)
    pictures[1, 0, 0, 0] = torch.inf
    with chat_server(brightness) as (url, seen):
        scores = VLMJudge(endpoint=at(url))(pictures, prompts).parts["judge"]
    assert scores.isnan().tolist() == [False, True, False, False]
    assert len(seen) == 3


def test_scores_are_awaited_while_the_next_part_is_drawn(prompts):
    hold = threading.Event()

    def answer(seen, number):
        hold.wait(5)
        return brightness(seen, number)

    with chat_server(answer) as (url, _):
        pending = submit_scores(VLMJudge(endpoint=at(url)), grey(*GREY), prompts, torch.zeros(4, dtype=torch.long))
        hold.set()
        assert pending().parts["judge"].isfinite().all()


def test_retries_leave_the_runs_random_numbers_alone():
    state = random.getstate()
    with chat_server(lambda seen, number: Reply(status=503) if not number else "Final Score: 3") as (url, _):
        VLMJudge(endpoint=at(url))(grey(0.5), ["x"])
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "judge:8000"}, "url must be an address"),
        ({"requests": 0}, "requests must be > 0"),
        ({"retries": -1}, "retries and backoff_s must be >= 0"),
    ],
)
def test_settings_of_the_endpoint_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatEndpoint(**{"model": "judge"} | settings)


# ------------------------------------------------------------------------------------------------------------ pairwise


GROUPS = torch.tensor([0, 0, 0, 1, 1])
LEVELS = (0.2, 0.8, 0.2, 0.4, 0.6)


def compared(url, levels=LEVELS, groups=GROUPS, **others):
    reward = VLMComparison(endpoint=at(url), **others)
    return reward(grey(*levels), [f"group {int(group)}" for group in groups], groups).parts["win_rate"]


def test_a_picture_gets_the_share_of_its_groups_others_that_it_beats():
    with chat_server(brighter) as (url, seen):
        rates = compared(url)
    assert rates.tolist() == [0.25, 1.0, 0.25, 0.0, 1.0]
    assert len(seen) == 3 + 1
    assert all(len(request.pictures) == 2 for request in seen)


def test_a_judge_that_always_prefers_the_first_picture_cancels_in_both_orders():
    with chat_server(lambda seen, number: "Image 1 is better than Image 2.") as (url, seen):
        assert compared(url, both_orders=True).tolist() == [0.5] * 5
        assert len(seen) == 8
        alternating = compared(url, levels=(0.5,) * 5, groups=torch.zeros(5, dtype=torch.long))
    assert alternating.tolist() == [0.5] * 5  # every picture is first in half of its comparisons


def test_few_opponents_meet_around_a_circle():
    levels = [number / 8 for number in range(8)]
    with chat_server(brighter) as (url, seen):
        rates = compared(url, levels=levels, groups=torch.zeros(8, dtype=torch.long), opponents=2)
    assert len(seen) == 8
    assert rates.tolist() == [0.0] + [0.5] * 6 + [1.0]  # everyone beats one neighbour, but for the ends of the circle


def test_unanswered_comparisons_are_left_out_and_a_picture_without_any_has_no_score():
    def answer(seen, number):
        return "I refuse." if "group 1" in seen.text else brighter(seen, number)

    with chat_server(answer) as (url, _):
        rates = compared(url)
    assert rates.isnan().tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Image 1 is better than Image 2.", 1.0),
        ("so **Image 2 is clearly better**", 0.0),
        ("Both images are equally good.", 0.5),
        ("Image 1 is better in colour. But overall, Image 2 is better than Image 1.", 0.0),
        ("Image 3 is better", None),
        ("neither", None),
    ],
)
def test_the_last_sentence_of_a_comparison_counts(text, expected):
    assert read_preference(text) == expected


def test_an_odd_number_of_opponents_is_refused():
    with pytest.raises(ValueError, match="opponents must be a positive even number, or None for all, got 3"):
        VLMComparison(endpoint=ChatEndpoint(model="judge"), opponents=3)


# ----------------------------------------------------------------------------------------------------------- self-tests


def knows(seen, number):
    """A judge that tells the three photographs apart by their colours."""
    red, green, blue = seen.pictures[-1].mean(axis=(0, 1))
    shown = "building" if min(red, green, blue) > 0.45 else "flower" if blue < 0.3 else "woman"
    return f"Final Score: {5 if shown in seen.text.partition('Caption')[2] else 1}"


def test_a_good_judge_passes_its_self_test_and_one_that_ignores_the_prompt_does_not():
    with chat_server(knows) as (url, _):
        assert run_self_test(VLMJudge(endpoint=at(url))).problems == ()
    with chat_server(brightness) as (url, _):
        (problem,) = run_self_test(VLMJudge(endpoint=at(url))).problems
    assert "the prompt plays no part" in problem


def test_a_comparing_judge_passes_its_self_test():
    def answer(seen, number):
        yellow = [picture[..., :2].mean() - 2 * picture[..., 2].mean() for picture in seen.pictures]  # only the flower has little blue
        return f"Image {1 if yellow[0] > yellow[1] else 2} is better than the other."

    with chat_server(answer) as (url, _):
        assert run_self_test(VLMComparison(endpoint=at(url))).problems == ()
