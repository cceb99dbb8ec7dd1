"""LeRobot's diffusion, real-stanford's diffusion_policy and robomimic, against their own samplers on stand-ins."""

from itertools import pairwise

import pytest
import torch
from standins_diffusion import (
    DiffusionPolicy,
    DiffusionPolicyUNet,
    DiffusionUnetImagePolicy,
    DiffusionUnetLowdimPolicy,
    RolloutPolicy,
    lerobot_processors,
    scheduler,
)

from flowrl.shapes import seeded_generator
from robot.adapters.diffusion_policy import StanfordDiffusion
from robot.adapters.lerobot import LeRobotDiffusion
from robot.adapters.robomimic import RobomimicDiffusion
from robot.composition import Composer
from robot.types import ActionSpec, Observation

XY = ActionSpec(names=("x", "y"), control_rate_hz=10)
LOW, HIGH = torch.tensor([-1.0, 10.0]), torch.tensor([3.0, 14.0])


def lerobot(noise_scheduler=None, **kwargs):
    host = DiffusionPolicy(noise_scheduler or scheduler(), **kwargs)
    before, after = lerobot_processors(LOW, HIGH)
    return LeRobotDiffusion(host=host, action=XY, preprocessor=before, postprocessor=after)


def stanford(way="global", noise_scheduler=None, **kwargs):
    host = DiffusionUnetLowdimPolicy(way, noise_scheduler or scheduler(), **kwargs)
    return StanfordDiffusion(host=host, action=XY, inputs={"obs": ("object", "eef")})


def robomimic(noise_scheduler=None, *, steps=20, stats=None, **kwargs):
    algorithm = DiffusionPolicyUNet(noise_scheduler or scheduler(), steps=steps, **kwargs)
    return RobomimicDiffusion(host=RolloutPolicy(algorithm, action_normalization_stats=stats), action=XY)


def state(batch=3, features=3, name="observation.state"):
    return Observation({name: torch.randn(batch, 2, features)})


def parts(batch=3):
    return Observation({"object": torch.randn(batch, 2, 2), "eef": torch.randn(batch, 2, 1)})


@pytest.mark.parametrize(("kind", "steps"), [("DDPM", 20), ("DDIM", 5)])
def test_lerobot_diffusion_alone_is_the_hosts_own_sampler(kind, steps):
    policy, observation = lerobot(scheduler(kind), steps=steps), state()
    generator = seeded_generator(7)
    noise = torch.randn(3, 16, 2, generator=generator)
    condition = policy.host.diffusion._prepare_global_conditioning(dict(observation.values))
    with torch.no_grad():
        raw = policy.postprocessor(policy.host.diffusion.conditional_sample(3, condition, generator=generator, noise=noise))
    chunk = policy.act(observation, seeded_generator(7))
    torch.testing.assert_close(chunk.values, raw, rtol=0, atol=2e-6)
    torch.testing.assert_close(chunk.to_execute(8), raw[:, 1:9], rtol=0, atol=2e-6)  # what generate_actions hands to the robot


def euler_of_composition(policy, observation, seed):
    """The composition of one policy, by Euler steps over all of its timesteps: DDIM where nothing is clipped."""
    field = Composer([policy.member()]).bound(observation, (len(observation), policy.horizon, policy.action.dof))
    times = [*policy.path.times().flip(0).tolist(), 0.0]
    x = torch.randn(len(observation), policy.horizon, policy.action.dof, generator=seeded_generator(seed))
    x = x * (times[0] ** 2 + (1 - times[0]) ** 2) ** 0.5
    for t, s in pairwise(times):
        x = x + (s - t) * field(x, t)
    return policy.stats.unnormalise(x)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_in_a_composition_the_hosts_network_gives_the_same_actions_as_alone(prediction):
    policy, observation = lerobot(scheduler("DDIM", prediction=prediction, clip=False)), state()
    alone = policy.act(observation, seeded_generator(3)).values
    with torch.no_grad():
        composed = euler_of_composition(policy, observation, 3)
    largest = float(alone.abs().max())  # epsilon divides by alpha = 2e-3 at the noisy end
    torch.testing.assert_close(composed, alone, rtol=0, atol=2e-4 * largest)


@pytest.mark.parametrize(("kind", "sampler"), [("DDPM", "sde"), ("DDIM", "ode")])
def test_the_hosts_settings_are_the_default_of_a_composition(kind, sampler):
    sampling = lerobot(scheduler(kind), steps=5).sampling
    assert (sampling.steps, sampling.sampler, sampling.clip) == (5, sampler, 1.0)
    assert lerobot(scheduler(kind, clip=False)).sampling.clip is None


def test_rows_with_generators_of_their_own_do_not_depend_on_their_neighbours():
    policy, observation = lerobot(), state()
    together = policy.act(observation, [seeded_generator(k) for k in range(3)]).values
    alone = policy.act(observation[[2]], [seeded_generator(2)]).values
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-5)


def test_pictures_of_all_cameras_enter_the_condition():
    policy = lerobot(cameras=2)
    pictures = {f"observation.images.{index}": torch.rand(3, 2, 4, 6, 6) for index in range(2)}
    observation = Observation({**state().values, **pictures})
    assert policy.sensors == ("observation.state", "observation.images.0", "observation.images.1")
    by_hand = torch.stack([picture.mean((-1, -2)) for picture in pictures.values()], 2).flatten(2)
    expected = torch.cat([observation.values["observation.state"], by_hand], -1).flatten(1)
    torch.testing.assert_close(policy.encode(observation), expected)


def test_the_host_encodes_once_a_chunk_and_is_left_as_it_was():
    policy = lerobot()
    model = policy.host.diffusion
    before = dict(vars(model))
    policy.act(state(), seeded_generator(0))
    assert model.encoded == 1
    assert model.unet.calls == 20
    assert {**dict(vars(model)), "encoded": 0} == {**before, "encoded": 0}
    Composer([policy.member()]).sample((3, 16, 2), steps=4, condition=state())
    assert model.encoded == 2
    assert model.unet.calls == 24


def test_encoding_draws_no_random_number():
    policy = lerobot()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    policy.encode(Observation({"observation.state": torch.zeros(3, 2, 3)}))
    torch.testing.assert_close(torch.rand(1), expected)


def test_normalisers_become_offset_and_scale():
    policy = lerobot()
    torch.testing.assert_close(policy.stats.offset, torch.tensor([1.0, 12.0]))  # middle of LOW and HIGH
    torch.testing.assert_close(policy.stats.scale, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(stanford().stats.scale, torch.tensor([2.0, 0.25]))  # theirs: normalised = scale·raw + offset
    torch.testing.assert_close(stanford().stats.offset, torch.tensor([-0.5, 0.25]))
    stats = {"actions": {"offset": torch.tensor([[1.0, 2.0]]), "scale": torch.tensor([[3.0, 4.0]])}}
    torch.testing.assert_close(robomimic(stats=stats).stats.scale, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(robomimic().stats.scale, torch.ones(2))


def test_a_normaliser_that_is_not_affine_is_refused():
    host, (before, _) = DiffusionPolicy(scheduler()), lerobot_processors(LOW, HIGH)
    policy = LeRobotDiffusion(host=host, action=XY, preprocessor=before, postprocessor=lambda actions: actions.sin())
    with pytest.raises(ValueError, match=r"not offset \+ scale·x"):
        policy.member()
    mixing = LeRobotDiffusion(host=host, action=XY, preprocessor=before, postprocessor=lambda actions: actions + actions.flip(-1))
    with pytest.raises(ValueError, match=r"not offset \+ scale·x"):
        mixing.member()


@pytest.mark.parametrize(
    ("way", "flags", "first"),
    [
        ("global", {}, 2),
        ("global", {"oa_step_convention": True}, 1),
        ("local", {}, 2),
        ("cond", {"oa_step_convention": True}, 1),
        ("inpaint", {}, 2),
    ],
)
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_every_way_to_condition_diffusion_policy_gives_its_own_actions(way, flags, first, kind):
    policy, observation = stanford(way, scheduler(kind), **flags), parts()
    torch.manual_seed(11)
    with torch.no_grad():
        expected = policy.host.predict_action({"obs": torch.cat([observation.values["object"], observation.values["eef"]], -1)})
    chunk = policy.act(observation, torch.Generator().manual_seed(11))
    torch.testing.assert_close(chunk.values, expected["action_pred"], rtol=0, atol=1e-5)
    torch.testing.assert_close(chunk.to_execute(policy.execute), expected["action"], rtol=0, atol=1e-5)
    assert policy.first == first
    assert policy.private_dims == (3 if way == "inpaint" else 0)


@pytest.mark.parametrize("way", ["global", "local", "cond"])
def test_in_a_composition_diffusion_policy_gives_the_same_actions_as_alone(way):
    policy, observation = stanford(way, scheduler("DDIM", clip=False)), parts()
    with torch.no_grad():
        composed = euler_of_composition(policy, observation, 1)
    alone = policy.act(observation, seeded_generator(1)).values
    torch.testing.assert_close(composed, alone, rtol=0, atol=2e-4 * float(alone.abs().max()))


def test_observations_that_are_in_painted_stay_with_their_policy():
    policy, observation = stanford("inpaint"), parts()
    member, condition = policy.member(), policy.encode(observation)
    assert member.private_dims == 3
    time = torch.full((3,), 5)
    x = torch.randn(3, 8, 5)
    other = x.clone()
    other[:, :2, 2:] = 99.0  # the frames that were observed: whatever the composition holds there is put right before a query
    torch.testing.assert_close(member.predict(other, time, condition), member.predict(x, time, condition))
    other[:, 2:, 2:] = 99.0
    assert not torch.allclose(member.predict(other, time, condition), member.predict(x, time, condition))


def test_a_policy_that_predicts_only_what_it_executes_begins_at_the_present():
    policy = stanford("global", pred_action_steps_only=True)
    assert (policy.horizon, policy.first, policy.execute) == (4, 0, 4)
    assert policy.act(parts(), seeded_generator(0)).values.shape == (3, 4, 2)


def test_the_image_policy_takes_its_sensors_from_its_normaliser():
    policy = StanfordDiffusion(host=DiffusionUnetImagePolicy(scheduler()), action=XY)
    assert sorted(policy.sensors) == ["agent_pos", "image"]
    observation = Observation({"image": torch.rand(3, 2, 3, 6, 6), "agent_pos": torch.randn(3, 2, 1)})
    torch.manual_seed(2)
    with torch.no_grad():
        expected = policy.host.predict_action(dict(observation.values))
    torch.testing.assert_close(
        policy.act(observation, torch.Generator().manual_seed(2)).to_execute(4), expected["action"], rtol=0, atol=1e-5
    )


def test_a_low_dimensional_policy_needs_to_know_what_its_vector_joins():
    policy = StanfordDiffusion(host=DiffusionUnetLowdimPolicy("global", scheduler()), action=XY)
    with pytest.raises(ValueError, match="name the sensors that it joins"):
        _ = policy.sensors


@pytest.mark.parametrize(("kind", "steps"), [("DDPM", 20), ("DDIM", 10)])
@pytest.mark.parametrize("ema", [True, False])
def test_robomimic_alone_is_its_own_trajectory_of_the_averaged_network(kind, steps, ema):
    policy, observation = robomimic(scheduler(kind), steps=steps, ema=ema), parts()
    torch.manual_seed(4)
    with torch.no_grad():
        expected = policy.algorithm._get_action_trajectory(dict(observation.values))
    chunk = policy.act(observation, torch.Generator().manual_seed(4))
    torch.testing.assert_close(chunk.to_execute(policy.execute), expected, rtol=0, atol=1e-6)
    assert policy.networks["obs_encoder"].calls == 2
    assert policy.name == "DiffusionPolicyUNet"


def test_robomimic_observations_are_normalised_as_the_rollout_policy_does():
    policy, observation = robomimic(), parts()
    stats = {key: {"offset": torch.full((1, size), 2.0), "scale": torch.full((1, size), 4.0)} for key, size in (("object", 2), ("eef", 1))}
    policy.host.obs_normalization_stats = stats
    by_hand = torch.cat([(observation.values[key] - 2) / 4 for key in ("object", "eef")], -1).flatten(1)
    torch.testing.assert_close(policy.encode(observation), by_hand)


def test_two_hosts_with_other_chunks_conditions_and_normalisers_compose():
    first, second = stanford("cond", oa_step_convention=True), robomimic(scheduler("DDIM"))
    with pytest.warns(UserWarning, match="normaliser mismatch"):  # ranges (2, 0.25) against (1, 1)
        composer = Composer([first.member(0.4), second.member(0.6)], clip=1.0)
    with torch.no_grad():
        actions = composer.sample((3, 8, 2), steps=10, generator=seeded_generator(0), condition=parts())
    assert actions.shape == (3, 8, 2)
    assert bool(torch.isfinite(actions).all())
    assert first.host.model.calls == second.networks["noise_pred_net"].calls == 10


def test_a_schedule_that_does_not_end_at_noise_is_refused_unless_accepted():
    trapped = lerobot(scheduler(steps=100, schedule="linear"))
    assert float(trapped.path.alphas_cumprod[-1]) == pytest.approx(0.364, abs=0.001)
    with pytest.raises(ValueError, match=r"ends at alpha_bar = 0\.364"):
        trapped.member()
    assert trapped.act(state(), seeded_generator(0)).values.shape == (3, 16, 2)  # alone it does what its host does


def test_another_librarys_object_is_refused_by_what_it_lacks():
    before, after = lerobot_processors(LOW, HIGH)
    host = DiffusionUnetLowdimPolicy("global", scheduler())
    with pytest.raises(ValueError, match=r"has no diffusion\.unet: it is not LeRobot's DiffusionPolicy"):
        LeRobotDiffusion(host=host, action=XY, preprocessor=before, postprocessor=after)


def test_an_action_spec_of_another_size_is_refused():
    three = ActionSpec(names=("x", "y", "z"), control_rate_hz=10)
    with pytest.raises(ValueError, match="actions of 2 dimensions, its ActionSpec names 3"):
        StanfordDiffusion(host=DiffusionUnetLowdimPolicy("global", scheduler()), action=three)
