"""What a run does where scores are missing, and rewards that compare groups or work while the next prompts are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from toys import (
    Bright,
    LinearNet,
    ToyModel,
    fork_pair,
    gradient,
    lines,
    make_experience,
    make_learner,
    sde,
    trainer,
)

from flowrl.errors import ConfigError, NonFiniteError, RewardError
from flowrl.flow import FlowSDE, Trajectory
from flowrl.rl import RewardBatch, inner_rewards
from flowrl.train import Evaluation
from flowrl.train.checkpoint import check_complete
from flowrl.train.record import read_record
from flowrl.train.report import write_report
from flowrl.train.rollout import draw, join
from flowrl.train.scores import score, submit
from samplers import ODESampler, ShiftedGrid, SingularStochasticSampler

SINGULAR = SingularStochasticSampler(grid=ShiftedGrid(steps=4), dynamics=FlowSDE(noise_level=0.7), group_size=4, sde_indices=(0, 2))


@dataclass(frozen=True)
class FailsFor(Bright):
    """Has no score for prompt ``bad``: raises, or gives NaN for one picture of it."""

    bad: str = "0"
    raises: bool = True

    def __call__(self, samples, prompts):
        scores = samples.mean((1, 2, 3))
        if self.bad in prompts:
            if self.raises:
                raise RewardError("the server at nowhere does not answer")
            scores[list(prompts).index(self.bad)] = math.nan
        return RewardBatch({"bright": scores})


def kept_gradient(rows: Sequence[bool]) -> dict[str, torch.Tensor]:
    """The gradient of an update that counts some of the rows."""
    model = ToyModel(LinearNet())
    experience = make_experience(model, sde())
    return gradient(make_learner(model, micro_batch=3), replace(experience, kept=torch.tensor(rows)))


# -------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "NaN for one picture"])
def test_groups_without_scores_are_dropped_counted_and_logged(raises, tmp_path, caplog):
    fields = {"prompts_per_update": 4, "reward_batch": 4, "on_reward_failure": "drop", "updates": 2}  # every prompt in every update
    trainer(tmp_path / "run", reward=FailsFor(raises=raises), **fields).run()
    found = lines(tmp_path / "run")
    assert [line["groups_dropped"] for line in found] == [1, 1]
    assert all(math.isfinite(line["reward"]) for line in found)
    assert found[-1]["images"] == 2 * 16
    why = "the server at nowhere does not answer" if raises else "a score is not a number"
    assert f"goes on without 1 of 4 groups: {why}" in caplog.text


def test_a_run_that_drops_a_group_learns_what_the_others_teach(tmp_path):
    """The other three prompts' embeddings move; the dropped one's does not, since nothing that counts depends on it."""
    fields = {"prompts_per_update": 4, "reward_batch": 4, "on_reward_failure": "drop", "updates": 1}
    trainer(tmp_path / "run", reward=FailsFor(bad="2"), **fields).run()
    moved = ToyModel.latest.module.prompt.detach() - LinearNet().prompt.detach()
    decay = 1e-4 * 1e-2 * LinearNet().prompt.detach()  # AdamW decays every weight by lr · weight_decay
    torch.testing.assert_close(moved[2], -decay[2], atol=1e-8, rtol=0)
    assert (moved[[0, 1, 3]].abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(("raises", "error"), [(True, RewardError), (False, NonFiniteError)])
def test_a_run_that_shall_stop_at_a_missing_score_saves_first(raises, error, tmp_path):
    with pytest.raises(error, match=r"nowhere does not answer .*8 of 8 scores|nan for prompt"):
        trainer(tmp_path / "run", reward=FailsFor(raises=raises), prompts_per_update=2, updates=6).run()
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    assert check_complete(checkpoint) == len(lines(tmp_path / "run"))


def test_a_run_without_any_scored_group_stops_although_it_may_drop(tmp_path):
    (tmp_path / "prompts.txt").write_text("0\n", encoding="utf-8")
    with pytest.raises(RewardError, match=r"nowhere does not answer .*in this update; no group has all of its own"):
        trainer(tmp_path / "run", reward=FailsFor(), prompts_per_update=1, on_reward_failure="drop").run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000000") == 0


def test_rows_that_do_not_count_leave_the_gradient_of_the_others():
    """By a second route: the rows that count, as an experience of their own."""
    model = ToyModel(LinearNet())
    whole = make_experience(model, sde())
    first = slice(0, 4)  # the rows of the first prompt; SDE trajectories have a parent of their own per row and step
    trajectory = whole.trajectory
    parents = trajectory.parent_index[first].flatten()
    alone = Trajectory(
        samples=trajectory.samples[first],
        parents=trajectory.parents[parents],
        t=trajectory.t[parents],
        s=trajectory.s[parents],
        parent_condition=trajectory.parent_condition[parents],
        children=trajectory.children[first],
        parent_index=torch.arange(len(parents)).reshape(4, -1),
        log_prob=trajectory.log_prob[first],
        group=trajectory.group[first],
        network_evaluations=0,
    )
    expected = gradient(make_learner(ToyModel(LinearNet())), replace(whole, trajectory=alone, advantage=whole.advantage[first]))
    found = kept_gradient([True] * 4 + [False] * 4)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_an_update_in_which_no_row_of_this_process_counts_moves_nothing():
    assert all(not value.any() for value in kept_gradient([False] * 8).values())


def test_two_processes_of_which_one_lost_its_group_agree_on_the_weights(tmp_path):
    fields = {"prompts_per_update": 2, "on_reward_failure": "drop", "updates": 2, "reward": FailsFor(bad="1", raises=False)}
    (tmp_path / "prompts.txt").write_text("0\n1\n", encoding="utf-8")
    pair = fork_pair(lambda: trainer(tmp_path / "pair", **fields).run(), tmp_path)
    assert [child.wait() for child in pair] == [0, 0]
    trainer(tmp_path / "alone", **fields).run()
    for one, other in zip(lines(tmp_path / "pair"), lines(tmp_path / "alone"), strict=True):
        assert one["groups_dropped"] == other["groups_dropped"] == 1
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_an_evaluation_whose_reward_fails_stops_the_run_after_a_checkpoint(tmp_path):
    evaluation = Evaluation(prompts=("0",), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(FailsFor(),))
    with pytest.raises(RewardError, match="nowhere"):
        trainer(tmp_path / "run", evaluation=evaluation).run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000000") == 0


@dataclass(frozen=True)
class FailsOnce(Bright):
    """Has no scores for its first call."""

    calls: list = field(default_factory=list, compare=False)

    def __call__(self, samples, prompts):
        self.calls.append(len(prompts))
        if len(self.calls) == 1:
            raise RewardError("the server at nowhere does not answer")
        return super().__call__(samples, prompts)


def test_an_evaluation_whose_reward_fails_is_left_out_of_a_run_that_drops_what_is_not_scored(tmp_path, caplog):
    evaluation = Evaluation(prompts=("0",), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(FailsOnce(),))
    trainer(tmp_path / "run", evaluation=evaluation, evaluate_every=3, updates=6, on_reward_failure="drop").run()
    assert "the evaluation after 0 updates is left out: the server at nowhere does not answer" in caplog.text
    record = read_record(tmp_path / "run")
    assert [line["update"] for line in record.evals] == [3, 6]
    assert len(record.train) == 6
    assert "what is called before is the state after update 3" in record.notes[0]


@dataclass(frozen=True)
class Unreachable(Bright):
    def check(self):
        raise RewardError("no server at nowhere")


def test_a_reward_that_is_out_of_reach_is_found_before_the_model_is_loaded(tmp_path):
    from toys import ExplodingSource

    with pytest.raises(RewardError, match="no server at nowhere"):
        trainer(tmp_path / "run", model=ExplodingSource(), reward=Unreachable()).run()


# ----------------------------------------------------------------------------------------------------- groups and parts


@dataclass(frozen=True)
class InGroup:
    """Rank by brightness among the pictures of its group, 0 the darkest; and how many those are."""

    needs_groups: ClassVar[bool] = True
    weights: ClassVar[dict[str, float]] = {"rank": 1.0, "size": 0.0}

    def __call__(self, samples, prompts, groups):
        bright = samples.mean((1, 2, 3))
        mates = groups[:, None] == groups
        rank = ((bright[:, None] > bright) & mates).sum(1).float()
        return RewardBatch({"rank": rank, "size": mates.sum(1).float()})


@pytest.mark.parametrize("batch", [1, 6, 1000])
def test_a_reward_that_compares_gets_whole_groups_of_one_prompt_view_and_granularity(batch):
    model = ToyModel(LinearNet())
    rollout = draw(model, model.field(), SINGULAR, ["3", "1"], slots=[0, 1], key=(0, 0))
    scores = score(model, InGroup(), rollout, batch=batch)
    bright = model.decode(rollout.trajectory.samples).mean((-3, -2, -1)).reshape(2, 4, 2, 2)
    expected = bright.argsort(1).argsort(1)  # ranks along the members
    assert torch.equal(scores[..., 0].reshape(2, 4, 2, 2), expected.float())
    assert (scores[..., 1] == 4).all()


def test_rollouts_drawn_in_parts_are_the_rollout_drawn_at_once():
    model = ToyModel(LinearNet())
    whole = draw(model, model.field(), SINGULAR, ["3", "1", "2"], slots=[0, 1, 2], key=(0, 0))
    parts = [draw(model, model.field(), SINGULAR, [text], slots=[slot], key=(0, 0)) for slot, text in enumerate(["3", "1", "2"])]
    joined = join(parts)
    assert list(joined.prompts) == list(whole.prompts)
    one, other = whole.trajectory, joined.trajectory
    assert one.network_evaluations == other.network_evaluations
    for name in ("samples", "children", "log_prob", "group"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    for name in ("parents", "t", "s"):  # numbered otherwise, the same for every child
        torch.testing.assert_close(getattr(one, name)[one.parent_index], getattr(other, name)[other.parent_index])
    indices = [rollout.condition.tensors["index"][t.parent_condition[t.parent_index]] for rollout, t in ((whole, one), (joined, other))]
    assert torch.equal(*indices)


def test_a_run_in_parts_ends_where_the_run_at_once_ends(tmp_path):
    trainer(tmp_path / "whole", prompts_per_update=4).run()
    trainer(tmp_path / "parts", prompts_per_update=4, rollout_parts=3).run()
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["reward"] == pytest.approx(other["reward"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@dataclass(frozen=True)
class Slow(Bright):
    """Notes when pictures are handed in and when their scores are fetched."""

    events: list = field(default_factory=list)

    def submit(self, samples, prompts, groups):
        self.events.append("in")
        scores = self(samples, prompts)

        def wait():
            self.events.append("out")
            return scores

        return wait


def test_the_scores_of_a_part_are_fetched_after_the_last_part_is_drawn(tmp_path):
    slow = Slow()
    trainer(tmp_path / "run", prompts_per_update=4, rollout_parts=2, reward=slow, updates=1).run()
    assert slow.events == ["in", "in", "out", "out"]


def test_a_failure_that_shows_when_scores_are_fetched_is_reported_like_any_other():
    class Late(Bright):
        def submit(self, samples, prompts, groups):
            def wait():
                raise RewardError("gone meanwhile")

            return wait

    model = ToyModel(LinearNet())
    rollout = draw(model, model.field(), SINGULAR, ["3"], slots=[0], key=(0, 0))
    scores, problems = submit(model, Late(), rollout, batch=8).wait()
    assert scores.shape == (4, 2, 2, 1)
    assert scores.isnan().all()
    assert problems == ["gone meanwhile"] * 2


def test_other_words_for_a_failure_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="on_reward_failure must be 'stop' or 'drop', got 'ignore'"):
        trainer(tmp_path / "run", on_reward_failure="ignore")


@dataclass(frozen=True)
class Coupled:
    """Squared mean of A·log-ratio and a mean that depends on all that counts: no sum over entries."""

    separable: ClassVar[bool] = False

    def __call__(self, log_ratio, advantage, mask, context=None):
        terms = torch.where(mask, advantage * log_ratio.exp(), torch.zeros(()))
        mean = terms.sum() / mask.sum()
        return mean.square() - mean, {}


def test_an_objective_that_couples_entries_sees_only_those_that_count():
    found = []
    for others in (0.0, 100.0):  # advantages of the rows that do not count
        model = ToyModel(LinearNet())
        experience = make_experience(model, sde())
        experience.advantage[4:] = others
        kept = replace(experience, kept=torch.tensor([True] * 4 + [False] * 4))
        found.append(gradient(make_learner(model, Coupled(), micro_batch=3), kept))
    for name, value in found[0].items():
        assert value.abs().max() > 1e-5
        assert torch.equal(value, found[1][name])


@pytest.mark.parametrize("failing", [True, False], ids=["some failed", "none failed"])
def test_the_report_shows_lost_groups_where_there_are_any(failing, tmp_path):
    fields = {"prompts_per_update": 4, "reward_batch": 4, "on_reward_failure": "drop", "updates": 3}
    trainer(tmp_path / "run", reward=FailsFor() if failing else Bright(), **fields).run()
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert ("Groups without scores" in page) == failing


# ------------------------------------------------------------------------------------------ rewards that load and remember


@dataclass(frozen=True)
class Within:
    """Holds another reward, as composites do."""

    reward: object
    weights: ClassVar[dict[str, float]] = {"bright": 1.0}

    def __call__(self, samples, prompts):
        return self.reward(samples, prompts)


@dataclass(frozen=True)
class WithWeights(Bright):
    def load(self, device):
        raise RewardError(f"no weights for {device}")


def test_weights_of_a_reward_within_a_reward_are_read_before_the_model_is_loaded(tmp_path):
    from toys import ExplodingSource

    with pytest.raises(RewardError, match="no weights for cpu"):
        trainer(tmp_path / "run", model=ExplodingSource(), reward=Within(WithWeights())).run()


@dataclass(frozen=True)
class Particular(Bright):
    def check_prompts(self, prompts):
        raise ValueError(f"no quotes in {prompts}")


@pytest.mark.parametrize("evaluated", [False, True])
def test_prompts_that_cannot_be_scored_are_refused_before_the_model_is_loaded(evaluated, tmp_path):
    from toys import ExplodingSource

    held_out = Evaluation(prompts=("x",), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(Within(Particular()),))
    fields = {"evaluation": held_out} if evaluated else {"reward": Within(Particular())}
    with pytest.raises(ValueError, match=r"no quotes in \['x'\]" if evaluated else r"no quotes in \['0', '1', '2', '3'\]"):
        trainer(tmp_path / "run", model=ExplodingSource(), **fields).run()


@dataclass(frozen=True)
class Guarded:
    """Somebody's own wrapper, whose field has another name than ours and which knows nothing of checks."""

    guarded: object
    weights: ClassVar[dict[str, float]] = {"bright": 1.0}

    def __call__(self, samples, prompts):
        return self.guarded(samples, prompts)


def test_a_reward_is_found_within_anybodys_wrapper_before_the_model_is_loaded(tmp_path):
    from toys import ExplodingSource

    with pytest.raises(RewardError, match="no server at nowhere"):
        trainer(tmp_path / "run", reward=Guarded(guarded=Unreachable()), model=ExplodingSource()).run()
    with pytest.raises(ValueError, match="no quotes"):
        trainer(tmp_path / "other", reward=Guarded(guarded=Within(Particular())), model=ExplodingSource()).run()
    assert [type(one).__name__ for one in inner_rewards(Guarded(guarded=Within(Particular())))] == ["Within"]


@dataclass(frozen=True)
class Remembers(Bright):
    """Scores less the mean that it has been told of."""

    told: list = field(default_factory=list)

    def __call__(self, samples, prompts):
        return RewardBatch({"bright": samples.mean((1, 2, 3)) - sum(self.told)})

    def observe(self, scores):
        self.told.append(float(scores["bright"].mean()))

    def state_dict(self):
        return {"told": list(self.told)} if self.told is not None else {}

    def load_state_dict(self, state):
        self.told[:] = state["told"]


def test_what_a_reward_was_told_of_survives_a_resume(tmp_path):
    trainer(tmp_path / "whole", reward=Remembers()).run()
    first = Remembers()
    trainer(tmp_path / "run", reward=first, updates=4).run()
    assert first.told == pytest.approx([line["reward"] for line in lines(tmp_path / "run")])
    resumed = Remembers()
    trainer(tmp_path / "run", reward=resumed).run(resume=True)
    assert len(resumed.told) == 6
    assert [line["reward"] for line in lines(tmp_path / "run")] == [line["reward"] for line in lines(tmp_path / "whole")]
