"""Rollouts that do not depend on how prompts are shared out, scores, and the lines they become."""

import logging
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from toys import GRID, PROMPTS, Bright, ExplodingSource, LinearNet, ToyModel, lines, sde, trainer

from flowrl.errors import ConfigError, MissingExtraError
from flowrl.models import LoRA, StableDiffusion3
from flowrl.models.quiet import quiet_libraries
from flowrl.rl import RewardBatch, UniformPrompts
from flowrl.train import Evaluation
from flowrl.train.describe import describe, differences
from flowrl.train.rollout import draw
from flowrl.train.run import Run
from flowrl.train.scores import score
from flowrl.train.state import Counters
from flowrl.train.summary import train_line
from samplers import ODESampler, ShiftedGrid, SingularStochasticSampler

SINGULAR = SingularStochasticSampler(grid=GRID, dynamics=sde().dynamics, group_size=4, sde_indices=(0, 1), strides=(1, 2))


@dataclass(frozen=True)
class ByPrompt:
    """Two parts: the prompt's number, and the brightness."""

    weights: ClassVar[dict[str, float]] = {"number": 2.0, "bright": 1.0}

    def __call__(self, samples, prompts):
        return RewardBatch({"bright": samples.mean((1, 2, 3)), "number": torch.tensor([float(prompt) for prompt in prompts])})


@pytest.mark.parametrize("sampler", [sde(), SINGULAR], ids=["own noise", "shared anchor"])
def test_a_groups_rollout_does_not_depend_on_which_others_are_drawn_with_it(sampler):
    model = ToyModel(LinearNet())

    def trajectory(slots):
        return draw(model, model.field(), sampler, [PROMPTS[slot] for slot in slots], slots=slots, key=(7, 3)).trajectory

    whole = trajectory(range(4))
    for slots in ([0, 1], [2, 3]):
        rows = slice(slots[0] * 4, slots[-1] * 4 + 4)
        part = trajectory(slots)
        torch.testing.assert_close(part.children, whole.children[rows], rtol=0, atol=1e-6)
        torch.testing.assert_close(part.samples, whole.samples[rows], rtol=0, atol=1e-6)
    assert (whole.samples[:4] - whole.samples[4:8]).abs().max() > 0.1


def test_another_seed_update_or_slot_gives_other_initial_states_and_other_steps():
    model, drawn = ToyModel(LinearNet()), []

    class Listener:
        noise_rows, initial_time = sde().noise_rows, 1.0

        def sample(self, field, noise, condition, generators):
            drawn.append((noise, torch.randn(3, generator=generators[0])))

    for slot, key in ((0, (0, 0)), (1, (0, 0)), (0, (1, 0)), (0, (0, 1))):
        draw(model, model.field(), Listener(), ["0"], slots=[slot], key=key)
    noise, steps = zip(*drawn, strict=True)
    assert all((one - other).abs().max() > 0.1 for part in (noise, steps) for i, one in enumerate(part) for other in part[:i])


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_scores_are_of_each_final_state_and_its_prompt_however_they_are_batched(batch):
    model = ToyModel(LinearNet())
    rollout = draw(model, model.field(), SINGULAR, ["3", "1"], slots=[0, 1], key=(0, 0))
    scores = score(model, ByPrompt(), rollout, batch=batch)
    assert scores.shape == (8, 2, 2, 2)  # row, step, stride, part
    assert torch.equal(scores[..., 0], torch.tensor([3.0] * 4 + [1.0] * 4)[:, None, None].expand(8, 2, 2))
    torch.testing.assert_close(scores[..., 1], rollout.trajectory.samples.sigmoid().mean((-3, -2, -1)))


def test_a_line_holds_weighted_means_and_the_spread_within_groups_by_hand():
    first = torch.tensor([[1.0, 3.0], [3.0, 3.0], [10.0, 0.0], [14.0, 2.0]])  # two groups of two; two steps
    rewards = torch.stack([first, torch.ones(4, 2)], -1)[:, :, None]
    line = train_line(Counters(update=5, images=16), ByPrompt(), rewards, 2, {"loss": 0.5}, {"rollout": 1.5})
    root2 = 2**0.5  # deviation of two numbers that are 2 apart
    assert line["update"] == 4
    assert line["reward"] == pytest.approx(2 * 4.5 + 1)
    assert (line["reward/number"], line["reward/bright"]) == (pytest.approx(4.5), pytest.approx(1.0))
    assert line["reward_spread/step_0"] == pytest.approx(2 * (root2 + 2 * root2) / 2)
    assert line["reward_spread/step_1"] == pytest.approx(2 * (0 + root2) / 2)
    assert line["reward_std"] == pytest.approx((line["reward_spread/step_0"] + line["reward_spread/step_1"]) / 2)
    assert (line["loss"], line["seconds_rollout"], line["images"]) == (0.5, 1.5, 16)


def test_a_prompt_sampler_hears_how_each_of_its_prompts_went(tmp_path):
    heard = []

    class Listener(UniformPrompts):
        def observe(self, indices, rewards):
            heard.append((indices, rewards))

    trainer(tmp_path / "run", reward=ByPrompt(), prompt_sampler=Listener(prompts_count=4, seed=1), updates=3).run()
    assert len(heard) == 3
    for update, (indices, rewards) in enumerate(heard):
        assert indices == UniformPrompts(prompts_count=4, seed=1).draw(update, 2)
        assert rewards.shape == (2, 4)
        assert rewards.mean().item() == pytest.approx(lines(tmp_path / "run")[update]["reward"], rel=1e-6)
        # brightness lies in (0, 1), so twice the prompt's number stands out
        assert (rewards // 2).long().tolist() == [[index] * 4 for index in indices]


def test_counters_count_what_the_sampler_and_the_update_did(tmp_path):
    trainer(tmp_path / "run", sampler=SINGULAR, updates=2).run()
    for line in lines(tmp_path / "run"):
        updates = line["update"] + 1
        assert line["network_evaluations"] == updates * 2 * SINGULAR.evaluations()
        assert line["images"] == updates * 2 * 4 * 2 * 2
        assert line["trained_states"] == updates * 2 * 2


def test_evaluations_come_first_every_so_many_updates_and_last_with_a_grid_each(tmp_path):
    evaluation = Evaluation(prompts=("0",), sampler=ODESampler(grid=GRID), rewards=(Bright(),), keep=1)
    trainer(tmp_path / "run", updates=5, evaluation=evaluation, evaluate_every=2).run()
    found = lines(tmp_path / "run", "eval")
    assert [line["update"] for line in found] == [0, 2, 4, 5]
    assert [line["images"] for line in found] == [0, 16, 32, 40]
    assert all((tmp_path / "run" / line["grid"]).read_bytes().startswith(b"\x89PNG") for line in found)


# ------------------------------------------------------------------------------------------------- surroundings of a run


def test_trackers_get_the_numbers_of_the_metrics_file(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path / "run", updates=3, trackers=("tensorboard",)).run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "flowrl"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/bright")]
    assert found == [(line["update"], pytest.approx(line["reward/bright"])) for line in lines(tmp_path / "run")]


def test_a_tracker_that_is_not_installed_is_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowrl-torch\[wandb\]'"):
        trainer(tmp_path / "run", model=ExplodingSource(), trackers=("wandb",)).run()


def test_differences_name_dotted_places_and_leave_equal_parts_out():
    old, new = describe(trainer_like(sde())), describe(trainer_like(SINGULAR))
    assert differences(old, old) == []
    assert differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": [1, 2]}, "d": None}) == ["a.b: 1 -> 2"]
    assert differences(old, new)[0] == "sampler.target: samplers.SDESampler -> samplers.SingularStochasticSampler"


def trainer_like(sampler):
    return {"sampler": sampler}


def test_a_component_that_is_no_dataclass_is_described_by_its_class_alone():
    described = describe({"a": Bright(), "b": ConfigError("x"), "c": (1, None, "s")})
    assert described == {"a": {"target": "toys:Bright"}, "b": {"target": "flowrl.errors.ConfigError"}, "c": [1, None, "s"]}


@pytest.mark.parametrize("lora", [LoRA(rank=2), None], ids=["lora", "all weights"])
def test_loading_and_saving_write_nothing_to_the_terminal(lora, pipeline_folder, tmp_path, capfd):
    (tmp_path / "prompts.txt").write_text("red\n", encoding="utf-8")
    model = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=lora)
    run = Run(trainer(tmp_path / "run", model=model, prompts=str(tmp_path / "prompts.txt"), updates=1), resume=False)
    assert capfd.readouterr() == ("", "")
    run.loop()
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.split("|")[0].strip() for line in err.replace("\n", "\r").split("\r") if line.strip()} <= {"0%", "100%"}  # our own bar


def test_silence_ends_with_its_context():
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_warning()
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in (of_diffusers, of_transformers)]
    with quiet_libraries():
        assert {library.get_verbosity() for library in (of_diffusers, of_transformers)} == {logging.ERROR}
        assert not any(library.is_progress_bar_enabled() for library in (of_diffusers, of_transformers))
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in (of_diffusers, of_transformers)] == before


def test_a_run_tells_the_model_once_which_texts_it_will_ask_for(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(ToyModel, "prepare", lambda self, prompts: told.append(prompts))
    evaluation = Evaluation(prompts=("3", "0"), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(Bright(),))
    trainer(tmp_path / "run", updates=2, prompts_per_update=1, evaluation=evaluation, seed=1).run()
    first, second = (UniformPrompts(prompts_count=4, seed=1).draw(update, 1)[0] for update in range(2))
    assert told == [list(dict.fromkeys([*map(str, sorted({first, second})), "3", "0"]))]
