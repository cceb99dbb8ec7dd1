import copy
import pickle

import pytest
import torch
from gate_world import LAYOUT, begin, network, noise, run, stirred

from flowrl.shapes import seeded_generator
from robot.gating import GateRecord, View
from robot.gating.toy import TwoModes
from robot.noise_gate import ConstantGate, ConstantGateConfig, NoiseGate, NoiseGateConfig
from samplers import ODESampler, PerTokenSchedule, ShiftedGrid

SIZES = (LAYOUT.frames, LAYOUT.tokens, LAYOUT.channels)


def gates(**settings):
    torch.manual_seed(1)
    return [NoiseGate(*SIZES, width=16, heads=2, **settings), ConstantGate(LAYOUT.frames, **settings)]


@pytest.mark.parametrize("boundary", ["clamp", "finish", "normalise"])
@pytest.mark.parametrize("action", ["shared", "gated"])
@pytest.mark.parametrize(("steps", "shift"), [(5, 1.0), (4, 3.0)])
def test_a_fresh_gate_is_the_standard_sampler_bit_for_bit(boundary, action, steps, shift):
    start = begin()
    sampler = ODESampler(grid=ShiftedGrid(steps=steps, shift=shift))
    expected = sampler.sample(start.field, start.x, start.condition).samples[:, 0, 0]
    assert torch.equal(run(PerTokenSchedule.shared(steps, LAYOUT.frames, shift=shift), begin()).x, expected)
    for gate in gates(boundary=boundary, action=action, steps=steps, shift=shift):
        assert torch.equal(run(gate, begin()).x, expected)


def test_sampling_gives_times_and_one_log_probability_a_step():
    gate = stirred(NoiseGate(*SIZES, steps=4))
    state = torch.randn(6, *SIZES, generator=seeded_generator(3))
    times, log_prob = gate.sample(state, generator=seeded_generator(4))
    assert (times.shape, times.dtype, log_prob.shape) == ((5, 6, LAYOUT.frames), torch.float64, (6, 4))
    assert (times[0] == 1).all()
    assert (times.diff(dim=0) <= 0).all()
    assert (times >= 0).all()
    again = gate.sample(state, generator=seeded_generator(4))
    assert torch.equal(times, again[0])
    assert torch.equal(log_prob, again[1])
    assert not torch.equal(times, gate.sample(state, generator=seeded_generator(5))[0])


def test_latents_without_tokens_are_latents_of_one_token():
    gate = stirred(NoiseGate(3, 1, 4))
    latents = torch.randn(2, 3, 4, generator=seeded_generator(3))
    with_token = gate.sample(latents[:, :, None], generator=seeded_generator(4))
    for one, other in zip(gate.sample(latents, generator=seeded_generator(4)), with_token, strict=True):
        assert torch.equal(one, other)


def test_the_log_probability_of_a_step_is_the_sum_over_latents_of_what_was_recorded():
    gate = ConstantGate(3, steps=4)
    drawn = [torch.randn(6, 3, generator=seeded_generator(8)) for _ in range(4)]
    record = gate.explore(torch.zeros(6, 3, 1), drawn.__getitem__)
    u = torch.stack(drawn, dim=1) * torch.tensor(-0.5).exp()  # mean 0, log_std −0.5
    torch.testing.assert_close(record.decisions, u)
    slope = torch.sigmoid(u) * torch.sigmoid(-u) * 2
    expected = torch.distributions.Normal(0.0, torch.tensor(-0.5).exp()).log_prob(u) - slope.log()
    torch.testing.assert_close(record.log_prob, expected)


@pytest.mark.parametrize("boundary", ["clamp", "finish", "normalise"])
@pytest.mark.parametrize("action", ["shared", "gated"])
def test_what_was_recorded_is_scored_again_with_ratio_one(boundary, action):
    noisy, constant = gates(boundary=boundary, action=action)
    for gate in (stirred(noisy), constant):
        record = gate.explore(begin(), noise(gate))
        assert (gate.log_prob(record) - record.log_prob).exp().sub(1).abs().max() <= 1e-6
        rows = [4, 1]
        assert (gate.log_prob(record, rows) - record.log_prob[rows]).exp().sub(1).abs().max() <= 1e-6
        assert (gate.log_prob(record[1:3].to("cpu")) - record.log_prob[1:3]).exp().sub(1).abs().max() <= 1e-6


def test_records_join_row_by_row():
    gate = stirred(NoiseGate(*SIZES))
    first, second = gate.explore(begin(4, seed=1), noise(gate, 4)), gate.explore(begin(2, seed=2), noise(gate, 2))
    joined = GateRecord.cat([first, second])
    assert len(joined) == 6
    torch.testing.assert_close(gate.log_prob(joined), torch.cat([first.log_prob, second.log_prob]), atol=1e-6, rtol=0)
    assert torch.equal(joined[4:].times, second.times)


def test_scoring_moves_with_the_weights():
    gate = stirred(NoiseGate(*SIZES))
    record = gate.explore(begin(), noise(gate))
    stirred(gate, seed=12)
    assert (gate.log_prob(record) - record.log_prob).abs().max() > 0.1


def test_gradients_reach_every_weight_of_the_gate_and_none_of_the_backbone():
    net = network()
    before = copy.deepcopy(net.state_dict())
    gate = stirred(NoiseGate(*SIZES))
    record = gate.explore(begin(net=net), noise(gate))
    gate.log_prob(record)[record.counts].sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in gate.parameters())
    assert all(weight.grad is None for weight in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not record.log_prob.requires_grad


@pytest.mark.parametrize("what", ["latents", "times", "action_time", "observed"])
def test_a_decision_depends_on_everything_that_the_gate_sees(what):
    gate = stirred(NoiseGate(*SIZES))
    view = View.of(begin())
    changed = View(**{name: getattr(view, name) * (0.5 if name == what else 1) for name in View.__annotations__})
    assert (gate.decide(view).mean - gate.decide(changed).mean).abs().max() > 1e-4


def test_rows_do_not_mix():
    gate = stirred(NoiseGate(*SIZES))
    together = gate.decide(View.of(begin())).mean
    view = View.of(begin())
    alone = gate.decide(View(*(getattr(view, name)[2:3] for name in View.__annotations__))).mean
    torch.testing.assert_close(together[2:3], alone, atol=1e-6, rtol=1e-5)


def test_a_multiplier_towards_zero_leaves_the_content_of_its_latent_untouched():
    gate = ConstantGate(3)
    with torch.no_grad():
        gate.mean[1] = -200.0
    start = begin()
    state = run(gate, begin())
    assert (state.times[:, 1] == 1).all()
    assert torch.equal(state.latents[:, 1], start.latents[:, 1])
    assert not torch.equal(state.latents[:, 0], start.latents[:, 0])


@pytest.mark.parametrize("kind", [0, 1])
def test_a_gate_can_start_from_constants(kind):
    multipliers = (0.635, 1.0, 1.5)
    gate = gates(action="gated")[kind].start_from(multipliers)
    table = PerTokenSchedule.constant(multipliers, 5)
    state = begin()
    while state.step < 5:
        expected = table.next(state)
        state.advance(*gate.next(state))
        torch.testing.assert_close(state.times, expected[0], atol=1e-6, rtol=0)
        assert (state.action_time == expected[1]).all()


def test_decisions_that_do_not_count_change_no_action_and_others_do():
    gate = ConstantGate(3, log_std=0.5).start_from((1.0, 1.8, 1.8))
    state = begin(32)
    record = gate.explore(state, noise(gate, 32))
    assert not record.counts[:, -1].any()
    assert not record.counts[:, :-1].all()  # some latents arrive early
    assert torch.equal(record.counts[:, :-1], record.times[:-2].transpose(0, 1) > 0)

    def replay(changed):
        again = begin(32)
        spread = gate.spread.exp()
        gate.explore(again, lambda k: (torch.where(changed[:, k], 3.0, record.decisions[:, k]) - gate.mean) / spread)
        return again.actions

    torch.testing.assert_close(replay(~record.counts), state.actions, atol=2e-6, rtol=0)
    moved = (replay(record.counts) - state.actions).abs().flatten(1).amax(1)
    assert (moved > 1e-4).all()


def test_once_gated_actions_have_arrived_no_decision_counts():
    """By hand: at twice the pace the actions go 1, .6, .2, 0, 0, 0; what is decided for a frame at step k is heard from k + 1 on."""
    gate = ConstantGate(3, action="gated")
    with torch.no_grad():
        gate.mean.copy_(torch.tensor([-2.0, -2.0, -2.0, 200.0]))  # frames hardly move, so that only the actions decide
    record = gate.explore(begin(2), lambda k: torch.zeros(2, 4))
    torch.testing.assert_close(record.action_times[:, 0], torch.tensor([1.0, 0.6, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert record.counts[:, :, :3].tolist() == [[[step < 2] * 3 for step in range(5)]] * 2
    assert record.counts[:, :, 3].tolist() == [[True, True, True, False, False]] * 2


def test_a_gate_for_a_model_lives_where_the_model_does():
    assert NoiseGate.for_model(TwoModes().load("meta")).log_std.device.type == "meta"


def test_latents_of_another_precision_are_read_in_the_gate_s():
    gate = stirred(NoiseGate(*SIZES))
    rounded = torch.randn(2, *SIZES, generator=seeded_generator(3)).bfloat16()
    times, log_prob = gate.sample(rounded, generator=seeded_generator(4))
    expected = gate.sample(rounded.float(), generator=seeded_generator(4))
    assert torch.equal(times, expected[0])
    assert torch.equal(log_prob, expected[1])


def test_gated_actions_end_at_zero_and_never_turn_back():
    gate = stirred(NoiseGate(*SIZES, action="gated"))
    record = gate.explore(begin(), noise(gate))
    assert record.decisions.shape == (6, 5, LAYOUT.frames + 1)
    assert (record.action_times[-1] == 0).all()
    assert (record.action_times.diff(dim=0) <= 0).all()
    assert record.action_times[1].unique().numel() > 1


def test_shared_actions_follow_the_grid():
    gate = stirred(NoiseGate(*SIZES, shift=2.0))
    record = gate.explore(begin(), noise(gate))
    assert torch.equal(record.action_times, gate.grid[:, None].expand(-1, 6))


def test_a_gate_that_does_not_look_keeps_no_latents():
    gate = ConstantGate(3)
    record = gate.explore(begin(), noise(gate))
    assert record.latents is None
    with pytest.raises(ValueError, match="holds no latents"):
        NoiseGate(*SIZES).log_prob(record)


def test_the_spread_is_clamped():
    gate = ConstantGate(2, log_std_min=-1.0, log_std_max=0.5)
    with torch.no_grad():
        gate.log_std.copy_(torch.tensor([-3.0, 3.0]))
    assert gate.spread.tolist() == [-1.0, 0.5]


def test_gates_survive_pickling_and_copying():
    gate = stirred(NoiseGate(*SIZES))
    expected = run(gate, begin()).x
    assert torch.equal(run(pickle.loads(pickle.dumps(gate)), begin()).x, expected)
    assert torch.equal(run(copy.deepcopy(gate), begin()).x, expected)


def test_configs_build_gates_of_their_settings():
    gate = NoiseGateConfig(steps=3, boundary="finish", width=16).build(*SIZES)
    assert (gate.steps, gate.settings.boundary, gate.network.enter.out_features) == (3, "finish", 16)
    assert ConstantGateConfig(action="gated").build(*SIZES).columns == LAYOUT.frames + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"boundary": "clip"}, r"boundary must be one of clamp, finish, normalise, got 'clip'"),
        ({"action": "shard"}, r"action must be one of shared, gated, got 'shard'; did you mean 'shared'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"shift": 0.0}, "shift must be > 0"),
        ({"log_std": -6.0}, r"log_std must lie in \[-5.0, 2.0\], got -6.0"),
        ({"width": 30}, "width must be a multiple of heads and of 4, got width=30"),
        ({"layers": 0}, "layers must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NoiseGateConfig(**settings)


def test_states_that_do_not_fit_are_refused():
    gate = NoiseGate(*SIZES)
    with pytest.raises(ValueError, match=r"reads latents \(batch, 3, 2, 4\), got \(1, 3, 1, 4\)"):
        gate.sample(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match=r"axes \(batch, frame, token, channel\).*got \(4,\)"):
        gate.sample(torch.zeros(4))
    with pytest.raises(ValueError, match="decides for 3 latents, the state has 2"):
        gate.sample(torch.zeros(1, 2, 2, 4))
    state = run(gate, begin())
    with pytest.raises(ValueError, match="this one has taken 5 steps"):
        gate.explore(state, noise(gate))
    with pytest.raises(ValueError, match="takes 5 steps, all of which are taken"):
        gate.next(state)
    with pytest.raises(ValueError, match="wants 3 multipliers, one per latent, got 2"):
        gate.start_from((1.0, 0.5))
    with pytest.raises(ValueError, match="not both"):
        NoiseGate(*SIZES, config=NoiseGateConfig(), steps=3)
