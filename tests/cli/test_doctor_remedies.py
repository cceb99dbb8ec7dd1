"""What is left when a run does not fit."""

import pytest

from flowrl.cli.doctor_remedies import fitting_presets, remedies, too_large
from flowrl.cli.plan_rewards import reward_networks
from flowrl.config import instantiate, load_config
from flowrl.train.plan import Advice, Single, Subject, memory_plan

LARGE = "image/sd3_5_medium_g2rpo_lora_80gb"
GB = 10**9
NETWORK = "reward={target: rewards.ImageReward}"


def subject_of(*overrides: str) -> Subject:
    trainer = instantiate(load_config("image/digits_g2rpo", overrides))
    return Subject.of(trainer, reward_networks(trainer), cuda=False)


def left(subject: Subject, limit: int = 1) -> list[str]:
    advice = Advice(changes=(), subject=subject, plan=memory_plan(subject, Single()), fits=False)
    return remedies(subject, advice, Single(), limit)


def test_a_reward_s_network_can_leave_the_card_and_what_that_saves_is_its_size():
    subject = subject_of(NETWORK)
    [network] = subject.rewards
    saved = memory_plan(subject, Single()).peak - memory_plan(subject_of(), Single()).peak
    assert saved >= network.weights
    [text] = [text for text in left(subject) if "serve-reward" in text]
    assert text.startswith("ImageReward on another GPU or machine (flowrl serve-reward there, rewards.RemoteReward in the config): saves ")


def test_a_lora_is_named_only_where_there_is_none_and_moments_only_where_they_matter():
    assert not any("model.lora" in text or "AdamW8bit" in text for text in left(subject_of("sampler.max_batch=1")))
    small = ("model.lora=null", "sampler.max_batch=1", "update.micro_batch=1", "reward_batch=1", "evaluation=null")
    assert any("a LoRA instead of all weights" in text for text in left(subject_of(*small)))
    assert any("AdamW8bit" in text for text in left(subject_of(*small)))


def test_what_makes_it_fit_says_so():
    subject = subject_of(NETWORK)
    limit = memory_plan(subject_of(), Single()).peak * 2
    [text] = [text for text in left(subject, limit) if "serve-reward" in text]
    assert "then it fits" in text


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (80 * GB, [LARGE, "image/sd3_5_medium_g2rpo_lora_24gb"]),
        (24 * GB, ["image/sd3_5_medium_g2rpo_lora_24gb"]),
        (8 * GB, []),
    ],
)
def test_presets_for_a_card_are_found_by_their_names_first_those_of_the_same_model(limit, names):
    trainer = instantiate(load_config(LARGE))
    assert fitting_presets(Subject.of(trainer), limit) == names


def test_other_models_are_named_where_this_one_has_no_preset_for_the_card():
    trainer = instantiate(load_config("image/qwen_image_g2rpo_lora_80gb"))
    names = fitting_presets(Subject.of(trainer), 24 * GB)
    assert "image/sdxl_g2rpo_lora_24gb" in names
    assert all(name.endswith("_24gb") for name in names)


def test_a_network_that_is_larger_than_the_card_is_said_to_be_so():
    subject = subject_of()
    assert too_large(subject, Single(), subject.sizes.total) is None
    assert too_large(subject, Single(), subject.sizes.total - 1).startswith("the network and its LoRA alone take")
