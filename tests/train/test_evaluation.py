from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from flowrl.errors import NonFiniteError
from flowrl.flow import Condition, FlowSDE
from flowrl.rl import RewardBatch
from flowrl.shapes import seeded_generator
from flowrl.train.evaluation import Evaluation
from flowrl.train.evaluation_result import EvaluationResult
from rewards import Diversity
from samplers import ODESampler, SDESampler, ShiftedGrid

PROMPTS = ("one", "two", "three", "four", "five")


class Still:
    """A model that leaves the noise where it is and shows it, brightened."""

    state_shape = (3, 4, 4)
    device = torch.device("cpu")

    def __init__(self, brightness: float = 0.0) -> None:
        self.brightness = brightness
        self.module = torch.nn.Linear(1, 1)
        self.seen_training = []

    def encode(self, prompts) -> Condition:
        return Condition({"length": torch.tensor([[float(len(text))] for text in prompts])})

    def field(self, module=None):
        def velocity(x_t, t, condition):
            self.seen_training.append((self.module if module is None else module).training)
            return torch.zeros_like(x_t)

        return velocity

    def initial_state(self, noise, t) -> torch.Tensor:
        return noise

    def decode(self, latents) -> torch.Tensor:
        return (torch.sigmoid(latents) * 0.5 + self.brightness).clamp(0, 1)

    reference = nullcontext


@dataclass(frozen=True, kw_only=True)
class Level:
    """Mean brightness, times a factor."""

    name: str = "level"
    factor: float = 1.0
    weights: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", {self.name: 2.0})

    def __call__(self, samples, prompts) -> RewardBatch:
        return RewardBatch({self.name: self.factor * samples.mean((1, 2, 3))})


def evaluation(**changes) -> Evaluation:
    settings = {
        "prompts": PROMPTS,
        "sampler": ODESampler(grid=ShiftedGrid(steps=2)),
        "rewards": (Level(), Level(name="heldout", factor=-1.0)),
        "images_per_prompt": 3,
        "seed": 7,
        "keep": 4,
    }
    return Evaluation(**{**settings, **changes})


def expected_pictures(seed: int, images: int) -> torch.Tensor:
    noise = torch.stack([torch.randn(3, 4, 4, generator=seeded_generator(seed, 0, image)) for image in range(images)])
    return torch.sigmoid(noise) * 0.5


def test_every_image_is_drawn_from_noise_of_its_own_number():
    result = evaluation().run(Still())
    pictures = expected_pictures(7, 15)
    torch.testing.assert_close(result.scores["level"], pictures.mean((1, 2, 3)).double())
    torch.testing.assert_close(result.scores["heldout"], -pictures.mean((1, 2, 3)).double())
    torch.testing.assert_close(torch.stack(list(result.images.values())), pictures[:4])
    assert result.prompts == list(PROMPTS) * 3
    assert result.network_evaluations == 15 * 2


def test_the_reward_under_the_pictures_is_the_weighted_sum_of_the_first_reward():
    result = evaluation().run(Still())
    torch.testing.assert_close(result.reward, 2 * result.scores["level"])


@pytest.mark.parametrize("batch", [1, 2, 4, 7, 100])
def test_the_batch_changes_nothing(batch):
    one, other = evaluation().run(Still()), evaluation(batch=batch).run(Still())
    torch.testing.assert_close(other.scores, one.scores)
    torch.testing.assert_close(other.monitors, one.monitors)
    torch.testing.assert_close(other.images, one.images)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_prompts_and_give_the_same_result(processes):
    models = [Still() for _ in range(processes)]
    shares = [evaluation(batch=4).run(model, rank=rank, processes=processes) for rank, model in enumerate(models)]
    merged, whole = EvaluationResult.merge(shares), evaluation().run(Still())
    torch.testing.assert_close(merged.scores, whole.scores)
    torch.testing.assert_close(merged.monitors, whole.monitors)
    torch.testing.assert_close(merged.images, whole.images)
    assert merged.prompts == whole.prompts
    assert len({len(model.seen_training) for model in models}) == 1  # sharded networks need equal numbers of calls


def test_a_shorter_evaluation_is_the_beginning_of_a_longer_one():
    short, long = evaluation(images_per_prompt=2).run(Still()), evaluation(images_per_prompt=6).run(Still())
    torch.testing.assert_close(long.scores["level"][:10], short.scores["level"])


def test_stochastic_sampling_does_not_depend_on_the_batch_either():
    class OneOfAGroup(ODESampler):
        def sample(self, field, noise, condition, generator=None):
            drawn = super().sample(field, noise, condition)
            kick = torch.stack([torch.randn(3, 4, 4, generator=g) for g in generator])
            return replace(drawn, samples=drawn.samples + kick[:, None, None])

    sampler = OneOfAGroup(grid=ShiftedGrid(steps=2))
    one, other = (evaluation(sampler=sampler, batch=batch).run(Still()) for batch in (4, 100))
    torch.testing.assert_close(other.scores, one.scores)
    assert not torch.allclose(one.scores["level"], evaluation().run(Still()).scores["level"])


def test_two_models_are_compared_on_the_same_noise():
    before, after = evaluation().run(Still()), evaluation().run(Still(brightness=0.25))
    change = before.compare(after)["level"]
    assert (change.difference, change.win_rate) == (pytest.approx(0.25), 1.0)
    assert change.ci95 < 1e-6  # the noise is common to both
    assert before.compare(after)["heldout"].win_rate == 0.0


def test_evaluations_of_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match="only be compared on the same prompts and images"):
        evaluation().run(Still()).compare(evaluation(images_per_prompt=2).run(Still()))


def test_the_metrics_line_holds_means_intervals_and_monitors():
    result = evaluation().run(Still())
    line = result.line()
    level = expected_pictures(7, 15).mean((1, 2, 3)).double()
    assert line["eval/level"] == pytest.approx(level.mean().item())
    assert line["eval/level_ci95"] == pytest.approx(2.1447867 * level.std().item() / 15**0.5)  # t quantile, 14 degrees of freedom
    assert {"eval/heldout", "eval/heldout_ci95", "diversity", "edge_density", "colour_entropy"} < set(line)
    assert line["eval_images"] == 15


def test_diversity_is_that_of_each_prompts_own_images():
    pictures = expected_pictures(7, 15).flatten(1).double()
    of_prompt = [torch.pdist(pictures[prompt::5]).mean() / 48**0.5 for prompt in range(5)]
    assert evaluation(batch=4).run(Still()).line()["diversity"] == pytest.approx(torch.stack(of_prompt).mean().item())


def test_one_image_a_prompt_has_no_diversity():
    assert "diversity" not in evaluation(images_per_prompt=1).run(Still()).line()


def test_the_network_evaluates_in_eval_mode_without_a_graph_and_is_put_back():
    model = Still()
    model.module.train()
    result = evaluation().run(model)
    assert model.seen_training == [False] * len(model.seen_training)
    assert model.module.training
    assert not result.scores["level"].requires_grad


def test_the_prepared_module_is_called_instead_of_the_models_own():
    model, prepared = Still(), torch.nn.Linear(1, 1).eval()
    model.module.train()
    evaluation().run(model, module=prepared)
    assert model.seen_training == [False] * len(model.seen_training)


def test_a_result_comes_back_from_its_folder(tmp_path):
    result = evaluation(images_per_prompt=1).run(Still())
    result.save(tmp_path / "a")
    loaded = EvaluationResult.load(tmp_path / "a")
    torch.testing.assert_close(loaded.scores, result.scores, rtol=0, atol=0)
    torch.testing.assert_close(loaded.reward, result.reward, rtol=0, atol=0)
    torch.testing.assert_close(loaded.monitors, result.monitors, equal_nan=True, check_dtype=False)
    assert loaded.prompts == result.prompts
    assert list(loaded.images) == [0, 1, 2, 3]
    torch.testing.assert_close(loaded.images, result.images, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_folder_without_a_complete_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no complete evaluation"):
        EvaluationResult.load(tmp_path)
    evaluation().run(Still()).save(tmp_path)
    (tmp_path / "0002.png").unlink()
    with pytest.raises(ValueError, match=r"0002\.png"):
        EvaluationResult.load(tmp_path)


def test_a_grid_shows_the_kept_pictures_and_an_evaluation_that_kept_none_says_so():
    assert evaluation().run(Still()).grid("title").width == 20 + 4 * (112 + 20)
    with pytest.raises(ValueError, match="kept no picture; set keep to 1 or more"):
        evaluation(keep=0).run(Still()).grid()


def test_a_non_finite_score_names_its_part_and_prompt():
    class Broken(Level):
        def __call__(self, samples, prompts):
            scores = super().__call__(samples, prompts).parts[self.name]
            return RewardBatch({self.name: torch.where(torch.tensor([text == "three" for text in prompts]), torch.nan, scores)})

    with pytest.raises(NonFiniteError, match="score 'broken' is nan for the prompt 'three'"):
        evaluation(rewards=(Level(), Broken(name="broken"))).run(Still())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_prompt": 0}, "images_per_prompt must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"keep": -1}, "keep must be at least 0, got -1"),
        ({"rewards": ()}, "needs at least one reward"),
        ({"rewards": (Level(), Level())}, "two rewards have a part named level"),
        ({"prompts": ()}, "needs at least one prompt"),
        (
            {"sampler": SDESampler(grid=ShiftedGrid(steps=2), dynamics=FlowSDE(noise_level=0.7), group_size=4, shared_noise=False)},
            "sampler of group_size 4; use an ODESampler",
        ),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_when_it_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluation(**changes)


def test_the_prompt_file_is_read_when_the_evaluation_is_built(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\n")
    assert evaluation(prompts=str(file)).texts == ["a", "b"]
    file.write_text("")
    with pytest.raises(ValueError, match=r"prompts\.txt holds no prompt"):
        evaluation(prompts=str(file))


class Moving(Still):
    """Shows the noise as a video of seven frames."""

    def decode(self, latents) -> torch.Tensor:
        return super().decode(latents)[:, None].expand(-1, 7, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class LevelOfVideo(Level):
    def __call__(self, samples, prompts) -> RewardBatch:
        return RewardBatch({self.name: samples.mean((1, 2, 3, 4))})


def test_of_videos_a_strip_of_frames_is_kept():
    result = evaluation(rewards=(LevelOfVideo(),)).run(Moving())
    assert sorted(result.images) == [0, 1, 2, 3]
    assert result.images[0].shape[:2] == (3, 4)
    assert result.images[0].shape[2] < 7 * 4


def test_a_reward_that_compares_pictures_needs_two_of_each_prompt():
    reward = Diversity()
    with pytest.raises(ValueError, match="compares the pictures of a prompt, and there is one of each; draw at least two"):
        Evaluation(prompts=("red",), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(reward,), images_per_prompt=1)


@dataclass(frozen=True, kw_only=True)
class Drifting(Level):
    """Has seen scores, and scores by them."""

    def state_dict(self) -> dict[str, float]:
        return {"sum": 1.0}


def test_a_reward_whose_scale_moves_with_training_is_refused():
    with pytest.raises(ValueError, match="a Drifting of an evaluation has a scale that moves with training"):
        evaluation(rewards=(Drifting(),))


def test_pictures_drawn_without_scores_are_those_of_an_evaluation_of_the_same_prompts():
    scored = evaluation(batch=4, keep=10, images_per_prompt=2).run(Still())
    drawn = evaluation(batch=3, rewards=(Refuses(),)).draw(Still(), PROMPTS * 2)
    torch.testing.assert_close(drawn, torch.stack(list(scored.images.values())), atol=1e-6, rtol=0)


class Refuses:
    weights: ClassVar = {"refused": 1.0}

    def __call__(self, samples, prompts):
        raise AttributeError("asked although no score is wanted")
