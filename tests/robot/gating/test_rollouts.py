"""What is tried, what is kept of it, and what it was worth."""

from types import SimpleNamespace

import pytest
import torch

from flowrl.errors import ConfigError
from flowrl.rl import GroupAdvantage, MultiGranularityAdvantage
from robot import ConstantGate, Job, NoiseGate, run_episodes
from robot.execution import EpisodeKey
from robot.gating import GateRecord, OutcomeReward
from robot.gating.noise import ExplorationNoise, check_hold
from robot.gating.rollouts import Experience, Explorer
from robot.gating.scores import Scores, shared_out
from robot.gating.toy import TwoModes
from robot.gating.toy_task import TwoModesTask
from robot.gating.watch import Watch
from samplers import PerTokenSchedule


def noise(**settings):
    return ExplorationNoise(**({"seed": 0, "update": 0, "steps": 5, "columns": 3} | settings))


def key(variation=0, chunk=0, seed=7):
    return EpisodeKey(seed, variation, chunk)


def episode(**fields):
    given = {"success": False, "success_at": None, "max_reward": 0.0, "return_": 0.0, "crashed": False, "seed": 0}
    return SimpleNamespace(**(given | fields))


def scores(rewards, *, group_size=2, crashed=(), reward=None):
    results = [episode(max_reward=value, crashed=row in crashed) for row, value in enumerate(rewards)]
    return Scores.of(results, reward or OutcomeReward(success=0.0, max_reward=1.0), group_size)


class TestNoise:
    def test_noise_of_a_step_differs_from_step_to_step_chunk_to_chunk_and_member_to_member(self):
        draws = [noise()(key(variation, chunk)) for variation in (0, 1) for chunk in (0, 1)]
        assert len({float(value) for draw in draws for value in draw.flatten()}) == 4 * 5 * 3

    def test_noise_of_a_chunk_is_one_draw_for_all_its_steps(self):
        drawn, other = noise(hold="chunk")(key(chunk=0)), noise(hold="chunk")(key(chunk=1))
        assert torch.equal(drawn, drawn[:1].expand(5, -1))
        assert not torch.equal(drawn, other)

    def test_noise_of_an_episode_is_one_draw_for_all_its_chunks(self):
        held = noise(hold="episode")
        assert torch.equal(held(key(3, 0)), held(key(3, 9)))
        assert not torch.equal(held(key(3)), held(key(4)))

    @pytest.mark.parametrize("hold", ["step", "chunk", "episode"])
    def test_antithetic_members_try_the_opposite(self, hold):
        both = noise(hold=hold, antithetic=True)
        assert torch.equal(both(key(5, 2)), -both(key(4, 2)))
        assert not torch.equal(both(key(6, 2)).abs(), both(key(4, 2)).abs())

    def test_noise_is_standard_normal_and_changes_with_seed_and_update(self):
        drawn = torch.stack([noise(update=update)(key(member)) for update in range(20) for member in range(50)]).double()
        assert drawn.numel() == 15000
        assert float(drawn.mean()) == pytest.approx(0, abs=4 / 15000**0.5)
        assert float(drawn.std()) == pytest.approx(1, abs=4 / 30000**0.5)
        assert not torch.equal(noise(seed=1)(key()), noise()(key()))

    @pytest.mark.parametrize("correlation", [0.0, 0.8])
    def test_columns_are_correlated_as_asked_and_standard_normal_each(self, correlation):
        drawn = torch.cat([noise(correlation=correlation)(key(member)) for member in range(2000)]).double()
        found = torch.cov(drawn.T)
        wanted = torch.full((3, 3), correlation, dtype=torch.float64).fill_diagonal_(1.0)
        torch.testing.assert_close(found, wanted, atol=0.06, rtol=0)  # 4 standard errors of 10,000 draws

    def test_a_hold_that_does_not_exist_is_refused(self):
        with pytest.raises(ConfigError, match="step, chunk, episode, got 'run'"):
            check_hold("run")


def explored(gate, rows, *, antithetic=False, jobs=None):
    """What an explorer keeps of twelve rollouts of three seeds."""
    jobs = jobs or [Job(seed=seed, variation=4 * slot + member) for slot, seed in enumerate((5, 6, 7)) for member in range(4)]
    model = TwoModes().load()
    explorer = Explorer(model=model, gate=gate, noise=noise(steps=gate.steps, columns=gate.columns, antithetic=antithetic))
    results = run_episodes(TwoModesTask(), explorer, jobs, rows=rows, seed=3)
    return explorer, results


class TestExplorer:
    def test_what_is_kept_does_not_depend_on_batches_or_order(self):
        gate = NoiseGate(3, 1, 1, steps=3, width=8, layers=1, heads=2)
        torch.nn.init.normal_(gate.network.last.weight, generator=torch.Generator().manual_seed(0))
        (wide, results), (narrow, others) = explored(gate, 12), explored(gate, 5)
        keys, record = wide.recorded()
        again, second = narrow.recorded()
        assert keys == again == [EpisodeKey(5 + member // 4, member, 0) for member in range(12)]
        for name in ("times", "decisions", "log_prob", "latents"):
            torch.testing.assert_close(getattr(record, name), getattr(second, name), atol=1e-5, rtol=1e-5)
        assert [a.return_ for a in results] == pytest.approx([b.return_ for b in others], abs=1e-5)

    def test_members_of_a_group_share_the_base_noise_and_differ_in_what_they_try(self):
        gate = NoiseGate(3, 1, 1, steps=3, width=8, layers=1, heads=2)
        _, record = explored(gate, 12)[0].recorded()
        first = record.latents[:, 0].reshape(3, 4, -1)
        assert torch.equal(first, first[:, :1].expand_as(first))
        assert not torch.equal(first[0, 0], first[1, 0])
        assert len({tuple(row) for row in record.decisions.flatten(1).tolist()}) == 12

    def test_times_follow_the_noise_by_hand(self):
        gate = ConstantGate(3, steps=3)
        explorer, _ = explored(gate, 12)
        keys, record = explorer.recorded()
        u = torch.stack([explorer.noise(key) for key in keys]) * float(torch.tensor(-0.5).exp())
        torch.testing.assert_close(record.decisions, u, atol=1e-6, rtol=1e-6)
        fall = (2 * torch.sigmoid(u.double()) / 3).cumsum(1)
        torch.testing.assert_close(record.times[1:].transpose(0, 1), (1 - fall).clamp_min(0), atol=1e-6, rtol=1e-6)

    def test_a_chunk_that_is_drawn_again_replaces_the_first(self):
        model, gate = TwoModes().load(), ConstantGate(3, steps=3)
        explorer = Explorer(model=model, gate=gate, noise=noise(steps=3))
        seen = model_observation(2)
        explorer.act(seen, torch.Generator().manual_seed(0), [key(0), key(1)])
        with torch.no_grad():
            gate.mean += 1
        explorer.act(seen[[0]], torch.Generator().manual_seed(0), [key(1)])
        _, record = explorer.recorded()
        assert len(record) == 2
        torch.testing.assert_close(record.decisions[1] - 1, explorer.noise(key(1)) * float(torch.tensor(-0.5).exp()))

    def test_rows_have_to_be_named(self):
        explorer = Explorer(model=TwoModes().load(), gate=ConstantGate(3, steps=3), noise=noise(steps=3))
        with pytest.raises(ValueError, match="which chunk each of 2 rows is, got 0 names"):
            explorer.act(model_observation(2))

    def test_evaluations_are_counted_per_row(self):
        explorer, _ = explored(ConstantGate(3, steps=3), 5)
        assert (explorer.tally.chunks, explorer.tally.video, explorer.tally.action) == (12, 36, 36)
        assert explorer.tally.per(12) == {"video": 3.0, "action": 3.0}


def model_observation(rows):
    from robot.types import Observation

    return Observation({"place": torch.zeros(rows, 1, 1)})


def test_a_watched_schedule_acts_as_the_one_it_watches_and_tells_its_mean_times():
    model, schedule = TwoModes().load(), PerTokenSchedule.constant((0.5, 1.0, 2.0), 3)
    watch = Watch(schedule=schedule)
    actions = [model.with_schedule(one).act(model_observation(4), torch.Generator().manual_seed(1)).values for one in (schedule, watch)]
    assert torch.equal(*actions)
    model.with_schedule(watch).act(model_observation(3), torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.tensor(watch.times, dtype=torch.float64), schedule.times()[:, 0])
    assert (watch.tally.chunks, watch.tally.video, watch.tally.action) == (7, 21, 21)
    assert (watch.tally.chunks, watch.steps) == (7, 3)  # looking twice does not count twice


class TestReward:
    def test_parts_are_weighted_and_left_out_where_their_weight_is_zero(self):
        reward = OutcomeReward(success=0.5, max_reward=2.0, speed=1.0, horizon=100)
        solved = episode(success=True, success_at=25, max_reward=0.96, return_=7.0)
        assert reward(solved) == {"success": 1.0, "max_reward": 0.96, "speed": 0.75}
        assert reward.weights == {"success": 0.5, "max_reward": 2.0, "speed": 1.0}
        assert OutcomeReward(success=0.0, episode_return=1.0)(solved) == {"episode_return": 7.0}

    @pytest.mark.parametrize("weights", [{"success": 0.0}, {"max_reward": float("nan")}])
    def test_weights_that_say_nothing_are_refused(self, weights):
        with pytest.raises(ConfigError, match="finite weights of which one is not 0"):
            OutcomeReward(**weights)

    def test_a_reward_that_is_not_finite_is_named(self):
        with pytest.raises(ValueError, match=r"the reward of seed 0 is .*inf"):
            scores([0.0, float("inf")])


class TestScores:
    def test_a_group_of_equal_rewards_says_nothing(self):
        found = scores([1.0, 3.0, 0.1, 0.1])
        assert found.informative.tolist() == [True, False]
        torch.testing.assert_close(found.advantages(GroupAdvantage()), torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0, 0.0]))
        metrics = found.metrics()
        assert metrics["informative"] == 0.5
        assert metrics["reward"] == pytest.approx(1.05)
        assert metrics["reward_spread"] == pytest.approx(0.5)

    def test_a_crashed_episode_has_no_advantage_and_does_not_move_the_others(self):
        found = scores([1.0, 3.0, 99.0, 5.0, 5.0, 99.0], group_size=3, crashed=(2, 5))
        assert found.informative.tolist() == [True, False]
        # the deviation is that of 1, 3 and their mean 2: 1
        torch.testing.assert_close(found.advantages(GroupAdvantage()), torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
        assert found.metrics()["reward"] == pytest.approx(3.5)

    def test_rounding_gives_a_crashed_episode_no_advantage(self):
        """The mean of the others, put in its place, is not always the mean of the group to the last bit."""
        drawn = torch.rand(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rewards = torch.cat([drawn, torch.zeros(200, 1)], dim=1).flatten().tolist()
        found = scores(rewards, group_size=7, crashed=range(6, 1400, 7)).advantages(GroupAdvantage()).reshape(200, 7)
        assert float(found[:, 6].abs().max()) == 0
        assert float(found[:, :6].abs().min()) > 0

    def test_a_group_that_crashed_altogether_says_nothing(self):
        found = scores([1.0, 3.0], crashed=(0, 1))
        assert found.informative.tolist() == [False]
        assert found.advantages(GroupAdvantage()).tolist() == [0.0, 0.0]

    def test_parts_can_be_normalised_each_for_itself(self):
        results = [episode(success=True, success_at=3, max_reward=0.5), episode(max_reward=0.9)]
        found = Scores.of(results, OutcomeReward(success=1.0, max_reward=1.0), 2)
        half = 0.5**0.5
        torch.testing.assert_close(found.advantages(GroupAdvantage()), torch.tensor([half, -half]))  # 1.5 against 0.9
        torch.testing.assert_close(found.advantages(MultiGranularityAdvantage()), torch.zeros(2), atol=1e-6, rtol=0)  # one part each

    def test_a_part_that_is_missing_is_named(self):
        class Forgetful(OutcomeReward):
            def __call__(self, result):
                return {}

        with pytest.raises(ValueError, match="Forgetful gave no success"):
            Scores.of([episode(), episode()], Forgetful(), 2)

    def test_chunks_take_the_advantage_of_their_episode(self):
        members = torch.tensor([0, 0, 0, 1])
        assert shared_out(torch.tensor([2.0, -1.0]), members, per_episode=False).tolist() == [2.0, 2.0, 2.0, -1.0]

    def test_where_an_episode_makes_one_draw_its_chunks_share_the_advantage(self):
        members = torch.tensor([0, 0, 0, 1])
        shared = shared_out(torch.tensor([3.0, -1.0, 5.0]), members, per_episode=True)  # the third played no chunk
        assert shared.tolist() == [2.0, 2.0, 2.0, -2.0]  # 3/3 and -1/1, times 4 chunks / 2 episodes


def test_chunks_without_advantage_are_left_out_of_an_update():
    _, record = explored(ConstantGate(3, steps=3), 12)[0].recorded()
    advantage = torch.tensor([0.0, 1.0, 0.0, -1.0] + [0.0] * 8)
    kept = Experience(record=record, advantage=advantage).informative()
    assert len(kept) == 2
    assert isinstance(kept.record, GateRecord)
    assert torch.equal(kept.record.decisions, record.decisions[[1, 3]])
