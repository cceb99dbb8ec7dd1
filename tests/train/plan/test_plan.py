"""Memory by part, work, disk and advice, against the loaded model and counts by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from flowrl.cli.plan_rewards import reward_networks
from flowrl.config import bundled_configs, config_path, instantiate, load_config
from flowrl.errors import ConfigError
from flowrl.models import LoRA
from flowrl.rl import PPOClip, facts_of
from flowrl.train import AdamW
from flowrl.train.plan import (
    DDP,
    FSDP2,
    Single,
    Subject,
    ZeRO2,
    advise,
    checkpoint_parts,
    embedding_bytes,
    memory_plan,
    read_strategy,
    rollout_cost,
    update_work,
)
from flowrl.train.plan.passes import Sizes, evaluating, updating
from flowrl.train.prompts import load_prompts
from rewards import Aesthetic, CLIPScore, CompositeReward, FrameReward, HPSv2, PickScore
from samplers import singular_evaluations

FLOAT32 = 4
GIBI = 2**30


@pytest.fixture(scope="module")
def trainer():
    overrides = ["sampler.group_size=6", "sampler.sde_indices=[0,2]", "prompts_per_update=5", "sampler.strides=[1,2,3]"]
    return instantiate(load_config("image/digits_g2rpo", overrides))


@pytest.fixture(scope="module")
def model(trainer):
    return trainer.model.load("cpu")


def held(trainer, strategy=None):
    plan = memory_plan(Subject.of(trainer, cuda=False), strategy or Single())
    return {part.name: part.size for part in plan.held}


def phases(trainer, strategy=None):
    return {part.name: part.size for part in memory_plan(Subject.of(trainer, cuda=False), strategy or Single()).phases}


# ------------------------------------------------------------------------------------------------------------- counting


def test_an_update_costs_what_the_closed_form_says(trainer):
    cost = rollout_cost(trainer)
    assert cost.network_evaluations == 5 * singular_evaluations(10, (0, 2), 6, (1, 2, 3))
    assert cost.pictures == 5 * 6 * 2 * 3  # prompts, group, stochastic steps, strides
    assert cost.trained_states == 5 * 2  # all branches of a step share their parent
    assert cost.stored_states == 180 + 10 + 5 * 6 * 2


def test_guidance_doubles_the_evaluations_of_the_network(trainer):
    guided = replace(trainer, model=replace(trainer.model, guidance_scale=4.5))
    assert rollout_cost(guided).network_evaluations == 2 * rollout_cost(trainer).network_evaluations


def test_work_is_evaluations_times_operations(trainer):
    subject, cost = Subject.of(trainer, cuda=False), rollout_cost(trainer)
    work = update_work(subject)
    assert work.rollout == cost.network_evaluations * evaluating(subject.network, 1).operations
    assert work.update == cost.trained_states * trainer.update.epochs * updating(subject.network, 1).operations
    recompute = replace(trainer, update=replace(trainer.update, old_log_prob="recompute"))
    more = update_work(Subject.of(recompute, cuda=False)).update - work.update
    assert more == cost.trained_states * evaluating(subject.network, 1).operations


# --------------------------------------------------------------------------------------------------------------- memory


def test_weights_are_counted_as_the_loaded_model_has_them(trainer, model):
    found = held(trainer)
    trained = sum(parameter.numel() for parameter in model.trainable_parameters())
    network = sum(tensor.numel() for tensor in [*model.module.parameters(), *model.module.buffers()])
    assert found["network"] == FLOAT32 * network
    assert found["optimiser"] == 2 * FLOAT32 * trained
    assert found["decoder"] == FLOAT32 * sum(parameter.numel() for parameter in model.pipeline.vae.parameters())
    encoders = [model.pipeline.text_encoder, model.pipeline.text_encoder_2]
    assert found["text encoders"] == FLOAT32 * sum(p.numel() for encoder in encoders for p in encoder.state_dict().values())


def test_latents_are_counted_in_the_models_own_shape_and_shared_by_processes(trainer, model):
    state = model.state_shape[0] * model.state_shape[1] * model.state_shape[2]
    assert held(trainer)["latents of a rollout"] == 250 * state * FLOAT32
    assert held(trainer, DDP(processes=5, per_machine=5))["latents of a rollout"] == 50 * state * FLOAT32


def test_full_fine_tuning_trains_the_whole_network_in_float32(trainer):
    source = replace(trainer.model, lora=None, dtype="bfloat16")
    full = held(replace(trainer, model=source, ema_decay=0.9))
    positions = FLOAT32 * (full["network"] // FLOAT32 - full["weight average"] // FLOAT32)
    assert full["optimiser"] == 2 * full["weight average"]
    assert full["network"] == full["weight average"] + positions
    frozen = held(replace(trainer, model=replace(source, lora=LoRA(rank=1))))
    assert frozen["network"] < 0.55 * full["network"]  # frozen weights need no more than what they compute in


def test_a_reference_network_is_a_second_network_unless_a_lora_is_switched_off(trainer):
    asks = replace(trainer, objective=PPOClip(clip=1e-4, kl_weight=0.1))
    assert "reference network" not in held(asks)
    found = held(replace(asks, model=replace(trainer.model, lora=None)))
    assert found["reference network"] == found["network"]


def test_text_encoders_and_decoder_off_the_device_are_only_there_while_they_work(trainer):
    away = replace(trainer, model=replace(trainer.model, text_encoders="offload", decoder="offload"))
    before, after = held(trainer), held(away)
    assert {"text encoders", "decoder"} <= before.keys()
    assert not {"text encoders", "decoder"} & after.keys()
    later = sum(after[name] for name in ("optimiser", "latents of a rollout"))
    assert phases(away)["start, encoding prompts"] == max(0, before["text encoders"] - later)
    assert phases(away)["decoding and scoring"] > phases(trainer)["decoding and scoring"]


def test_an_optimiser_of_8_bits_takes_a_quarter(trainer):
    from flowrl.train.optimizer import AdamW8bit

    small = replace(trainer, optimizer=AdamW8bit(lr=1e-4))
    assert held(small)["optimiser"] == pytest.approx(held(trainer)["optimiser"] / 4, rel=0.02)


def test_a_run_starts_with_the_whole_network_although_it_is_sharded_later(trainer):
    found, strategy = Subject.of(trainer, cuda=False), FSDP2(processes=5, per_machine=5)
    first = memory_plan(found, strategy).phases[0]
    held_later = sum(held(trainer, strategy).values())
    assert first.size == found.sizes.total + found.encoders() + held(trainer)["decoder"] - held_later


def test_smaller_calls_take_less_and_larger_ones_no_more_than_there_are_states(trainer):
    sizes = [phases(replace(trainer, sampler=replace(trainer.sampler, max_batch=most)))["rollout"] for most in (4, 8, 10_000)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] == phases(replace(trainer, sampler=replace(trainer.sampler, max_batch=20_000)))["rollout"]


def test_a_gpu_has_a_reserve_and_a_cpu_none(trainer):
    on_gpu, on_cpu = (memory_plan(Subject.of(trainer, cuda=cuda), Single()) for cuda in (True, False))
    assert (on_cpu.reserve, on_gpu.reserve >= GIBI) == (0, True)


def test_a_model_that_is_unknown_here_has_no_plan(trainer):
    with pytest.raises(ValueError, match="not on this machine"):
        Subject.of(replace(trainer, model=replace(trainer.model, path="nobody/nothing")))


# ----------------------------------------------------------------------------------------------------------- strategies

SIZES = Sizes(total=4_000, trained=1_000, largest_block=400, outside=80)


def test_ddp_holds_everything_and_a_copy_of_the_gradients():
    ddp = DDP(processes=8, per_machine=8)
    assert (ddp.weights(SIZES), ddp.moments(8_000), ddp.gradients(4_000), ddp.buffers(SIZES)) == (4_000, 8_000, 4_000, 4_000)


def test_zero_2_shares_gradients_and_optimiser():
    zero = ZeRO2(processes=8, per_machine=8)
    assert (zero.weights(SIZES), zero.moments(8_000), zero.gradients(4_000)) == (4_000, 1_000, 500)
    assert zero.buffers(SIZES) == 4_000 // 8 + 2 * 4_000  # its part of the weights, and two buckets that hold them all


def test_fsdp_2_shares_everything_and_gathers_blocks():
    fsdp = FSDP2(processes=8, per_machine=8)
    assert (fsdp.weights(SIZES), fsdp.moments(8_000), fsdp.gradients(4_000)) == (500, 1_000, 500)
    assert fsdp.gathered(SIZES) == 3 * 400 + 80
    assert fsdp.whole_gradients(SIZES) == 2 * 400


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp_1gpu", Single()),
        ("ddp_8gpu", DDP(processes=8, per_machine=8)),
        ("ddp_2x8gpu", DDP(processes=16, per_machine=8)),
        ("fsdp2_2x8gpu", FSDP2(processes=16, per_machine=8)),
        ("deepspeed_zero2_8gpu", ZeRO2(processes=8, per_machine=8)),
        ("deepspeed_zero2_2x8gpu", ZeRO2(processes=16, per_machine=8)),
    ],
)
def test_accelerates_files_are_read(name, expected):
    assert read_strategy(f"configs/accelerate/{name}.yaml") == expected


@pytest.mark.parametrize(
    "text", ["distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n"]
)
def test_a_strategy_that_the_trainer_does_not_have_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text + "num_processes: 8\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: .* is not supported; use DDP"):
        read_strategy(tmp_path / "a.yaml")


def test_groups_that_cannot_be_shared_have_no_plan(trainer):
    with pytest.raises(ConfigError, match="cannot be shared evenly by 8 processes"):
        memory_plan(Subject.of(trainer), DDP(processes=8, per_machine=8))


# ----------------------------------------------------------------------------------------------------------------- disk


def test_a_checkpoint_of_a_lora_holds_it_and_its_moments(trainer):
    subject = Subject.of(trainer, cuda=False)
    parts = {part.name: part.size for part in checkpoint_parts(subject, Single())}
    trained = FLOAT32 * subject.sizes.trained
    assert parts == {"weights": trained, "optimiser": 2 * trained}
    averaged = Subject.of(replace(trainer, ema_decay=0.9), cuda=False)
    assert {part.name: part.size for part in checkpoint_parts(averaged, Single())}["averaged weights"] == 2 * trained
    sharded = {part.name: part.size for part in checkpoint_parts(subject, FSDP2(processes=5, per_machine=5))}
    assert sharded["sharded network"] == subject.sizes.total


def test_embeddings_are_counted_as_the_model_makes_them(trainer, model):
    tensors = model.encode(["three"]).tensors
    longest = 77 - tensors["prompt_embeds"].shape[1] + trainer.model.max_sequence_length  # the tiny tokenizer stops earlier than CLIP's
    expected = sum(tensor.nbytes for tensor in tensors.values()) + longest * tensors["prompt_embeds"].shape[2] * FLOAT32
    assert embedding_bytes(Subject.of(trainer, cuda=False)) == expected


# --------------------------------------------------------------------------------------------------------------- advice


def test_advice_leads_to_a_plan_that_fits_and_can_be_typed(trainer):
    subject = Subject.of(trainer, cuda=False)
    limit = memory_plan(subject, Single()).peak // 3
    advice = advise(subject, Single(), limit)
    assert advice.fits
    assert advice.plan.peak <= limit
    places = [change.place for change in advice.changes]
    assert len(set(places)) == len(places)
    overrides = ["sampler.group_size=6", "sampler.sde_indices=[0,2]", "prompts_per_update=5", "sampler.strides=[1,2,3]"]
    typed = instantiate(load_config("image/digits_g2rpo", overrides + [change.override for change in advice.changes]))
    assert memory_plan(Subject.of(typed, cuda=False), Single()).peak == advice.plan.peak


def test_what_cannot_fit_is_said_to_be_so(trainer):
    advice = advise(Subject.of(trainer, cuda=False), Single(), 1000)
    assert not advice.fits
    assert advice.plan.peak > 1000


def test_what_fits_needs_no_advice(trainer):
    assert advise(Subject.of(trainer, cuda=False), Single(), GIBI).changes == []


# -------------------------------------------------------------------------------------------------------------- rewards


def test_each_network_behind_rewards_is_counted_once(trainer):
    reward = CompositeReward(rewards=(HPSv2(), PickScore(dtype="bfloat16"), FrameReward(reward=CLIPScore())))
    networks = {
        n.name: n for n in reward_networks(replace(trainer, reward=reward, evaluation=replace(trainer.evaluation, rewards=(HPSv2(),))))
    }
    assert {name: network.weights for name, network in networks.items()} == {
        "HPSv2": pytest.approx(986_109_441 * 4, rel=1e-5),
        "PickScore": pytest.approx(986_109_441 * 2, rel=1e-5),
        "CLIPScore": pytest.approx(427_616_513 * 4, rel=1e-5),  # ViT-L/14
    }
    assert all(network.operations_per_picture > 1e11 for network in networks.values())


def test_a_reward_on_the_cpu_or_without_a_network_takes_nothing(trainer):
    assert reward_networks(trainer) == []
    assert reward_networks(replace(trainer, reward=Aesthetic(device="cpu"))) == []


# -------------------------------------------------------------------------------------------------------------- presets

PRESETS = [name for name in bundled_configs() if name.startswith("image/") and "digits" not in name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_its_source_and_the_exact_command(name):
    comments = re.match(r"(?:#.*\n)+", config_path(name).read_text(encoding="utf-8"))[0]
    assert re.search(r"arXiv:\d{4}\.\d{5}|as flux1_", comments)
    command = re.search(r"# Command: (.*)\n", comments)[1]
    assert command.endswith(f" configs/{name}.yaml")
    if file := re.search(r"--config_file (\S+)", command):
        trainer = instantiate(load_config(name))
        trainer.check_groups(read_strategy(file[1]).processes)
        assert config_path(file[1])


@pytest.mark.parametrize("name", [name for name in PRESETS if re.search("flow_grpo|dancegrpo|mixgrpo", name)])
def test_the_baselines_cut_an_update_into_samples_as_their_scripts_do(name):
    """There an optimiser step has all trained denoising steps of some of the samples; in G²RPO's script for HPSv2 it has one of all."""
    assert instantiate(load_config(name)).update.cut_by == "sample"


@pytest.mark.parametrize("kind", ["geneval", "ocr", "pickscore"])
def test_flow_grpo_trains_all_steps_but_the_last_and_averages_weights_over_80_optimiser_steps(kind):
    """``timestep_fraction`` 0.99 of 10 steps is 9; the weight average takes a tenth of the weights every eighth optimiser step."""
    preset = instantiate(load_config(f"image/sd3_5_medium_flow_grpo_{kind}"))
    assert preset.sampler.for_update(0, 0).trained() == tuple(range(9))
    assert preset.ema_decay**8 == pytest.approx(0.9, abs=2e-3)


def test_no_everyday_prompt_is_both_trained_and_evaluated():
    trained, evaluated = (load_prompts(f"assets/prompts/everyday_{part}.txt") for part in ("train", "eval"))
    assert (len(set(trained)), len(set(evaluated))) == (len(trained), len(evaluated)) == (201, 40)
    assert not set(trained) & set(evaluated)


def test_every_edit_names_a_picture_that_is_there():
    for prompt in load_prompts("assets/prompts/everyday_edits.jsonl"):
        assert Path(facts_of(prompt)["image"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("image/sd3_5_medium_g2rpo_lora_24gb", 24), ("image/sd1_5_g2rpo_lora_24gb", 24), ("image/flux1_g2rpo_lora_40gb", 40)],
)
def test_a_preset_fits_the_card_that_its_name_says(name, gigabytes):
    trainer = instantiate(load_config(name))
    assert memory_plan(Subject.of(trainer, reward_networks(trainer)), Single()).peak <= gigabytes * 10**9


def test_the_default_optimiser_is_the_one_whose_moments_are_counted(trainer):
    assert isinstance(trainer.optimizer, AdamW)
