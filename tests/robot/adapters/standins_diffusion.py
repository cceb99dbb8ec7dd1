"""Stand-ins for hosts that do not install beside flowrl: real class, method and argument names, shapes and schedules, tiny networks.

Written from the public sources: huggingface/lerobot 0.4.4 and 0.6.2, real-stanford/diffusion_policy 5ba07ac, robomimic 0.5.0.
"""

from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn


def scheduler(kind="DDPM", *, steps=20, schedule="squaredcos_cap_v2", prediction="epsilon", clip=True):
    cls = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[kind]
    return cls(num_train_timesteps=steps, beta_schedule=schedule, clip_sample=clip, prediction_type=prediction)


class Network(nn.Module):
    """A smooth function of the state, the timestep and the condition; counts its calls."""

    def __init__(self, dims, features, time_scale=100.0):
        super().__init__()
        self.x, self.c, self.time_scale, self.calls = nn.Linear(dims, dims), nn.Linear(features, dims), time_scale, 0

    def run(self, x, time, features):
        self.calls += 1
        time = torch.as_tensor(time, device=x.device).expand(len(x)).to(x)[:, None, None] / self.time_scale
        return torch.tanh(self.x(x) + self.c(features)[:, None] + torch.sin(3 * time))


# ---------------------------------------------------------------------------------------------------------------- LeRobot


class DiffusionConditionalUnet1d(Network):
    def forward(self, x, timestep, global_cond=None):
        assert timestep.dtype == torch.long
        assert timestep.shape == (len(x),)
        return self.run(x, timestep, global_cond)


class DiffusionModel(nn.Module):
    def __init__(self, config, noise_scheduler, num_inference_steps):
        super().__init__()
        self.config, self.noise_scheduler, self.num_inference_steps, self.encoded = config, noise_scheduler, num_inference_steps, 0
        width = config.n_obs_steps * (3 + 4 * len(config.image_features))
        self.unet = DiffusionConditionalUnet1d(config.dof, width)

    def _prepare_global_conditioning(self, batch):
        self.encoded += 1
        features = [batch["observation.state"]]
        if "observation.images" in batch:  # (batch, frame, camera, channel, height, width)
            features.append(batch["observation.images"].mean((-1, -2)).flatten(2))
        return torch.cat(features, -1).flatten(1)

    def conditional_sample(self, batch_size, global_cond=None, generator=None, noise=None):
        shape = (batch_size, self.config.horizon, self.config.dof)
        sample = noise if noise is not None else torch.randn(shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            output = self.unet(sample, torch.full(sample.shape[:1], t, dtype=torch.long), global_cond=global_cond)
            sample = self.noise_scheduler.step(output, t, sample, generator=generator).prev_sample
        return sample

    def generate_actions(self, batch, noise=None):
        condition = self._prepare_global_conditioning(batch)
        actions = self.conditional_sample(len(condition), global_cond=condition, noise=noise)
        start = self.config.n_obs_steps - 1
        return actions[:, start : start + self.config.n_action_steps]


class DiffusionPolicy(nn.Module):
    name = "diffusion"

    def __init__(self, noise_scheduler, *, steps=None, cameras=0, dof=2):
        super().__init__()
        images = {f"observation.images.{index}": None for index in range(cameras)}
        self.config = SimpleNamespace(
            n_obs_steps=2,
            horizon=16,
            n_action_steps=8,
            dof=dof,
            image_features=images,
            input_features={"observation.state": None, **images},
        )
        self.diffusion = DiffusionModel(self.config, noise_scheduler, steps or noise_scheduler.config.num_train_timesteps)


def lerobot_processors(low, high):
    """Pre- and postprocessor: LeRobot's MIN_MAX for actions, nothing for observations."""
    return dict, lambda actions: (actions + 1) / 2 * (high - low) + low


# ------------------------------------------------------------------------------------------------- real-stanford/diffusion_policy


class SingleFieldLinearNormalizer:
    def __init__(self, params):
        self.params_dict = params

    def normalize(self, x):
        return x * self.params_dict["scale"] + self.params_dict["offset"]

    def unnormalize(self, x):
        return (x - self.params_dict["offset"]) / self.params_dict["scale"]


class LinearNormalizer(nn.Module):
    """``normalised = scale·x + offset``: the other way round than flowrl's."""

    def __init__(self, **params):
        super().__init__()
        self.params_dict = nn.ParameterDict({key: nn.ParameterDict(value) for key, value in params.items()}).requires_grad_(False)

    def __getitem__(self, key):
        return SingleFieldLinearNormalizer(self.params_dict[key])

    def normalize(self, values):
        return {key: self[key].normalize(value) for key, value in values.items()}


class ConditionalUnet1D(Network):
    def forward(self, sample, timestep, local_cond=None, global_cond=None):
        features = global_cond if global_cond is not None else sample.new_zeros(len(sample), self.c.in_features)
        if local_cond is not None:
            features = local_cond.flatten(1)
        return self.run(sample, timestep, features)


class TransformerForDiffusion(Network):
    def forward(self, sample, timestep, cond=None):
        return self.run(sample, timestep, sample.new_zeros(len(sample), self.c.in_features) if cond is None else cond.flatten(1))


class DiffusionUnetLowdimPolicy(nn.Module):
    """All ways to condition; ``DiffusionTransformerLowdimPolicy`` is the same with ``obs_as_cond``."""

    horizon, n_action_steps, n_obs_steps, obs_dim, action_dim = 8, 4, 2, 3, 2

    def __init__(self, way, noise_scheduler, *, pred_action_steps_only=False, oa_step_convention=False):
        super().__init__()
        self.obs_as_global_cond, self.obs_as_local_cond, self.obs_as_cond = (way == name for name in ("global", "local", "cond"))
        self.pred_action_steps_only, self.oa_step_convention = pred_action_steps_only, oa_step_convention
        self.noise_scheduler, self.num_inference_steps, self.kwargs = noise_scheduler, noise_scheduler.config.num_train_timesteps, {}
        dims = self.action_dim + (0 if way in ("global", "local", "cond") else self.obs_dim)
        features = self.obs_dim * (self.horizon if way == "local" else self.n_obs_steps)
        self.model = (TransformerForDiffusion if way == "cond" else ConditionalUnet1D)(dims, features)
        self.normalizer = LinearNormalizer(
            action={"scale": torch.tensor([0.5, 4.0]), "offset": torch.tensor([0.25, -1.0])},
            obs={"scale": torch.full((3,), 2.0), "offset": torch.full((3,), -0.5)},
        )

    def conditional_sample(self, condition_data, condition_mask, local_cond=None, global_cond=None, cond=None, generator=None, **kwargs):
        x = torch.randn(condition_data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[condition_mask] = condition_data[condition_mask]
            output = self.model(x, t, cond) if self.obs_as_cond else self.model(x, t, local_cond=local_cond, global_cond=global_cond)
            x = self.noise_scheduler.step(output, t, x, generator=generator, **kwargs).prev_sample
        x[condition_mask] = condition_data[condition_mask]
        return x

    def predict_action(self, obs_dict):
        seen = self.normalizer["obs"].normalize(obs_dict["obs"])
        batch, frames, wide = len(seen), self.n_obs_steps, not (self.obs_as_global_cond or self.obs_as_local_cond or self.obs_as_cond)
        steps = self.n_action_steps if self.pred_action_steps_only else self.horizon
        data = torch.zeros(batch, steps, self.action_dim + (self.obs_dim if wide else 0))
        mask = torch.zeros_like(data, dtype=torch.bool)
        ways = {}
        if self.obs_as_global_cond:
            ways = {"local_cond": None, "global_cond": seen[:, :frames].flatten(1)}
        elif self.obs_as_local_cond:
            local = torch.zeros(batch, self.horizon, self.obs_dim)
            local[:, :frames] = seen[:, :frames]
            ways = {"local_cond": local, "global_cond": None}
        elif self.obs_as_cond:
            ways = {"cond": seen[:, :frames]}
        else:
            data[:, :frames, self.action_dim :] = seen[:, :frames]
            mask[:, :frames, self.action_dim :] = True
        sampled = self.conditional_sample(data, mask, **ways, **self.kwargs)
        actions = self.normalizer["action"].unnormalize(sampled[..., : self.action_dim])
        start = 0 if self.pred_action_steps_only else frames - 1 if self.oa_step_convention else frames
        return {"action": actions[:, start : start + self.n_action_steps], "action_pred": actions}


class DiffusionUnetImagePolicy(DiffusionUnetLowdimPolicy):
    """Pictures and a vector by name; always from index ``n_obs_steps − 1``."""

    obs_feature_dim = 4

    def __init__(self, noise_scheduler):
        super().__init__("global", noise_scheduler)
        del self.oa_step_convention, self.pred_action_steps_only, self.obs_as_local_cond
        self.model = ConditionalUnet1D(self.action_dim, self.obs_feature_dim * self.n_obs_steps)
        identity = {"scale": torch.ones(1), "offset": torch.zeros(1)}
        action = {"scale": torch.tensor([0.5, 4.0]), "offset": torch.tensor([0.25, -1.0])}
        self.normalizer = LinearNormalizer(action=action, image=identity, agent_pos=identity)

    def predict_action(self, obs_dict):
        seen = {key: value[:, : self.n_obs_steps].flatten(0, 1) for key, value in self.normalizer.normalize(obs_dict).items()}
        batch = len(obs_dict["agent_pos"])
        features = torch.cat([seen["image"].mean((-1, -2)), seen["agent_pos"]], -1).reshape(batch, -1)
        data = torch.zeros(batch, self.horizon, self.action_dim)
        mask = torch.zeros_like(data, dtype=torch.bool)
        sampled = self.conditional_sample(data, mask, local_cond=None, global_cond=features, **self.kwargs)
        actions = self.normalizer["action"].unnormalize(sampled)
        return {"action": actions[:, self.n_obs_steps - 1 :][:, : self.n_action_steps], "action_pred": actions}


# -------------------------------------------------------------------------------------------------------------- robomimic


class NoisePredNet(Network):
    def forward(self, sample, timestep, global_cond=None):
        return self.run(sample, timestep, global_cond)


class ObservationGroupEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, **inputs):
        self.calls += 1
        return torch.cat([inputs["obs"][key] for key in ("object", "eef")], -1)


class DiffusionPolicyUNet:
    """The algorithm: no ``nn.Module``, its networks are in ``nets`` and, averaged, in ``ema.averaged_model``."""

    def __init__(self, noise_scheduler, *, steps, ema=True):
        self.device, self.ac_dim, self.noise_scheduler = torch.device("cpu"), 2, noise_scheduler
        self.obs_shapes = {"object": (2,), "eef": (1,)}
        self.nets = self._networks()
        self.ema = SimpleNamespace(averaged_model=self._networks()) if ema else None
        ddpm = "DDPM" in type(noise_scheduler).__name__
        timing = SimpleNamespace(observation_horizon=2, action_horizon=4, prediction_horizon=8)
        self.algo_config = SimpleNamespace(
            horizon=timing,
            ddpm=SimpleNamespace(enabled=ddpm, num_inference_timesteps=steps),
            ddim=SimpleNamespace(enabled=not ddpm, num_inference_timesteps=steps),
        )
        self.global_config = SimpleNamespace(train=SimpleNamespace(action_keys=["actions"]))

    @staticmethod
    def _networks():
        return nn.ModuleDict({"policy": nn.ModuleDict({"obs_encoder": ObservationGroupEncoder(), "noise_pred_net": NoisePredNet(2, 6)})})

    def _get_action_trajectory(self, obs_dict):
        nets = self.nets if self.ema is None else self.ema.averaged_model
        frames = {key: value.flatten(0, 1) for key, value in obs_dict.items()}
        condition = nets["policy"]["obs_encoder"](obs=frames).reshape(len(obs_dict["eef"]), -1)
        x = torch.randn(len(condition), self.algo_config.horizon.prediction_horizon, self.ac_dim)
        config = self.algo_config.ddpm if self.algo_config.ddpm.enabled else self.algo_config.ddim
        self.noise_scheduler.set_timesteps(config.num_inference_timesteps)
        for k in self.noise_scheduler.timesteps:
            noise = nets["policy"]["noise_pred_net"](sample=x, timestep=k, global_cond=condition)
            x = self.noise_scheduler.step(model_output=noise, timestep=k, sample=x).prev_sample
        start = self.algo_config.horizon.observation_horizon - 1
        return x[:, start : start + self.algo_config.horizon.action_horizon]


class RolloutPolicy:
    def __init__(self, policy, obs_normalization_stats=None, action_normalization_stats=None):
        self.policy = policy
        self.obs_normalization_stats, self.action_normalization_stats = obs_normalization_stats, action_normalization_stats
