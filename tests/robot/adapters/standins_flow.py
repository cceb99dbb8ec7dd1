"""Stand-ins for DPPO cc7234a, ReinFlow aed2819, LeRobot's pi0, pi05 and smolvla, and openpi 15a9616: real names, shapes, loops."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

Sample = namedtuple("Sample", "trajectories chains")


# ------------------------------------------------------------------------------------------------------- DPPO and ReinFlow


class ConditionedMLP(nn.Module):
    """``DiffusionMLP`` and ``FlowMLP``: the observation enters at every call."""

    def __init__(self, horizon_steps, action_dim, cond_dim):
        super().__init__()
        self.net, self.calls = nn.Linear(horizon_steps * action_dim + cond_dim + 1, horizon_steps * action_dim), 0

    def forward(self, x, time, cond):
        self.calls += 1
        batch, steps, dims = x.shape
        flat = [x.view(batch, -1), cond["state"].view(batch, -1), time.view(batch, 1).float() / 20]
        return torch.tanh(self.net(torch.cat(flat, -1))).view(batch, steps, dims)


class DiffusionModel(nn.Module):
    """Posterior means with clipped data, as DDPM (arXiv:2006.11239, Eq. 7), or DDIM with ε recomputed after clipping."""

    def __init__(
        self, network, *, horizon_steps=4, action_dim=2, denoising_steps=20, use_ddim=False, ddim_steps=None, predict_epsilon=True
    ):
        super().__init__()
        self.network, self.horizon_steps, self.action_dim, self.denoising_steps = network, horizon_steps, action_dim, denoising_steps
        self.predict_epsilon, self.use_ddim, self.ddim_steps = predict_epsilon, use_ddim, ddim_steps
        self.denoised_clip_value, self.randn_clip_value, self.final_action_clip_value = 1.0, 3, None
        cosine = np.cos((np.arange(denoising_steps + 1) / denoising_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = torch.tensor(np.clip(1 - cosine[1:] / cosine[:-1], 0, 0.999), dtype=torch.float32)
        self.betas, self.alphas_cumprod = betas, torch.cumprod(1 - betas, 0)
        self.before = torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
        if use_ddim:
            self.ddim_t = torch.arange(ddim_steps).flip(0) * (denoising_steps // ddim_steps)

    def answer(self, x, t, cond, index):
        return self.network(x, t, cond=cond)

    def p_mean_var(self, x, t, cond, index=None, deterministic=False):
        output, bar = self.answer(x, t, cond, index), self.alphas_cumprod[t][:, None, None]
        data = (x - (1 - bar).sqrt() * output) / bar.sqrt() if self.predict_epsilon else output
        data = data.clamp(-self.denoised_clip_value, self.denoised_clip_value)
        if self.use_ddim:
            stride = self.denoising_steps // self.ddim_steps
            last = torch.where(t >= stride, self.alphas_cumprod[(t - stride).clamp(min=0)], torch.ones(()))[:, None, None]
            noise = (x - bar.sqrt() * data) / (1 - bar).sqrt()
            return last.sqrt() * data + (1 - last).sqrt() * noise, torch.full_like(x, -torch.inf)
        beta, last = self.betas[t][:, None, None], self.before[t][:, None, None]
        mean = beta * last.sqrt() / (1 - bar) * data + (1 - last) * (1 - beta).sqrt() / (1 - bar) * x
        return mean, (beta * (1 - last) / (1 - bar)).clamp(min=1e-20).log().expand_as(x)

    @torch.no_grad()
    def forward(self, cond, deterministic=True):
        batch = len(cond["state"])
        x = torch.randn(batch, self.horizon_steps, self.action_dim)
        times = self.ddim_t if self.use_ddim else list(reversed(range(self.denoising_steps)))
        for index, t in enumerate(times):
            time, place = torch.full((batch,), int(t)), torch.full((batch,), index)
            mean, logvar = self.p_mean_var(x=x, t=time, cond=cond, index=place, deterministic=deterministic)[:2]
            std = torch.zeros_like(mean) if self.use_ddim or t == 0 else torch.exp(0.5 * logvar).clip(min=1e-3)
            noise = torch.randn_like(x).clamp_(-self.randn_clip_value, self.randn_clip_value)
            x = mean + std * noise
        return Sample(x, None)


class DiffusionEval(DiffusionModel):
    """Fine-tuned: another network for the last ``ft_denoising_steps`` steps."""

    def __init__(self, network, tuned, ft_denoising_steps, **kwargs):
        super().__init__(network, **kwargs)
        self.actor, self.actor_ft, self.ft_denoising_steps = network, tuned, ft_denoising_steps

    def answer(self, x, t, cond, index):
        late = index >= self.ddim_steps - self.ft_denoising_steps if self.use_ddim else t < self.ft_denoising_steps
        return torch.where(late[:, None, None], self.actor_ft(x, t, cond=cond), self.actor(x, t, cond=cond))


class ReFlow(nn.Module):
    def __init__(self, network, horizon_steps=4, action_dim=2, act_min=-1.0, act_max=1.0):
        super().__init__()
        self.network, self.horizon_steps, self.action_dim = network, horizon_steps, action_dim
        self.act_range = (act_min, act_max)

    @torch.no_grad()
    def sample(self, cond, inference_steps, clip_intermediate_actions=True, z=None):
        x = z.clone()
        for t in torch.linspace(0, 1, inference_steps):
            x = x + self.network(x, t.expand(len(x)), cond) / inference_steps
            x = x.clamp(*self.act_range)
        return Sample(x, None)


class ShortcutFlow(ReFlow):
    """Refused by name."""


# ------------------------------------------------------------------------------------------------- pi0, pi05, smolvla, openpi


class KeyValueCache:
    """The one method of transformers' caches that choosing rows needs."""

    def __init__(self, keys):
        self.keys = keys

    def batch_select_indices(self, indices):
        self.keys = self.keys[indices]


class _Expert(nn.Module):
    """The prefix becomes one cached vector; the suffix reads it with the state, the noisy chunk and the time."""

    def __init__(self, width, prefix, state):
        super().__init__()
        self.prefix, self.action, self.state = nn.Linear(prefix, width), nn.Linear(width, width), nn.Linear(state, width)
        self.prefixes = self.queries = 0

    def embed(self, prefix):
        self.prefixes += 1
        return KeyValueCache(self.prefix(prefix))

    def velocity(self, cache, state, x_t, timestep):
        assert timestep.shape == (len(x_t),)
        assert timestep.dtype == torch.float32
        self.queries += 1
        seen = cache.keys if isinstance(cache, KeyValueCache) else cache[0]["key_states"]
        extra = 0 if state is None else self.state(state)[:, None]
        return torch.tanh(self.action(x_t) + seen[:, None] + extra + timestep[:, None, None])


class PI0Pytorch(_Expert):
    """LeRobot's: ``denoise_step(state, prefix_pad_masks, past_key_values, x_t, timestep)``."""

    def sample_actions(self, images, img_masks, lang_tokens, lang_masks, state, noise=None, num_steps=None):
        prefix = torch.cat([images[0].mean((-1, -2)), lang_tokens.float()], -1)
        cache, masks = self.embed(prefix), img_masks[0][:, None]
        x_t, steps = noise, num_steps or 10
        for step in range(steps):
            time = torch.tensor(1.0 - step / steps, dtype=torch.float32).expand(len(state))
            v_t = self.denoise_step(state=state, prefix_pad_masks=masks, past_key_values=cache, x_t=x_t, timestep=time)
            x_t = x_t - v_t / steps
        return x_t

    def denoise_step(self, state, prefix_pad_masks, past_key_values, x_t, timestep):
        return self.velocity(past_key_values, state, x_t, timestep)


class VLAFlowMatching(_Expert):
    """smolvla's (pi05's is alike): no state, the cache of 0.4.4 is a dict of layers."""

    def sample_actions(self, images, img_masks, lang_tokens, lang_masks, state, noise=None):
        keys = self.embed(torch.cat([images[0].mean((-1, -2)), lang_tokens.float()], -1)).keys + self.state(state)
        cache, x_t = {0: {"key_states": keys, "value_states": keys}}, noise
        for step in range(10):
            time = torch.tensor(1.0 - step / 10, dtype=torch.float32).expand(len(state))
            x_t = x_t - self.denoise_step(x_t=x_t, prefix_pad_masks=img_masks[0][:, None], past_key_values=cache, timestep=time) / 10
        return x_t

    def denoise_step(self, prefix_pad_masks, past_key_values, x_t, timestep):
        return self.velocity(past_key_values, None, x_t, timestep)


class LeRobotVLA(nn.Module):
    """``PI0Policy`` or ``SmolVLAPolicy`` of a robot with 3 joints, padded to 6."""

    def __init__(self, name="pi0"):
        super().__init__()
        self.name, features = name, {"observation.state": None, "observation.images.top": None, "observation.images.empty_camera_0": None}
        steps = {"num_inference_steps": 10} if name != "smolvla" else {"num_steps": 10}
        self.config = SimpleNamespace(
            chunk_size=5, n_action_steps=5, max_action_dim=6, max_state_dim=6, rtc_config=None, input_features=features, **steps
        )
        self.model = (PI0Pytorch if name == "pi0" else VLAFlowMatching)(6, 3 + 2, 6)

    @torch.no_grad()
    def predict_action_chunk(self, batch, **kwargs):
        image = batch["observation.images.top"]
        state = nn.functional.pad(batch["observation.state"], (0, 3))
        tokens = batch["observation.language.tokens"]
        mask = torch.ones(len(state), dtype=torch.bool)
        return self.model.sample_actions([image * 2 - 1], [mask], tokens, tokens > 0, state, **kwargs)[..., :3]


def vla_processors(mean, std):
    """LeRobot's: the task becomes tokens; MEAN_STD for actions."""

    def before(batch):
        tokens = torch.tensor([[len(task), task.count("o")] for task in batch["task"]])
        return {**batch, "observation.language.tokens": tokens}

    return before, lambda actions: actions * std + mean


class OpenPiModel(_Expert):
    """openpi's ``PI0Pytorch``: positional arguments, a while loop over float32 time, ``config.action_horizon``."""

    pi05 = False

    def __init__(self):
        super().__init__(6, 3 + 2, 6)
        self.config = SimpleNamespace(action_horizon=5, action_dim=6)

    def sample_actions(self, device, observation, noise=None, num_steps=10):
        tokens, state = observation.tokenized_prompt, observation.state
        cache = self.embed(torch.cat([observation.images["base_0_rgb"].mean((-1, -2)), tokens.float()], -1))
        dt = torch.tensor(-1.0 / num_steps, dtype=torch.float32)
        x_t, time = noise, torch.tensor(1.0, dtype=torch.float32)
        while time >= -dt / 2:
            v_t = self.denoise_step(state, observation.image_masks["base_0_rgb"], cache, x_t, time.expand(len(state)))
            x_t = x_t + dt * v_t
            time = time + dt
        return x_t

    def denoise_step(self, state, prefix_pad_masks, past_key_values, x_t, timestep):
        return self.velocity(past_key_values, state, x_t, timestep)


class OpenPiObservation(SimpleNamespace):
    """``openpi.models.model.Observation``."""

    @classmethod
    def from_dict(cls, data):
        images = {key: value.float().permute(0, 3, 1, 2) / 255 * 2 - 1 for key, value in data["image"].items()}
        return cls(
            images=images,
            image_masks=data["image_mask"],
            state=data["state"],
            tokenized_prompt=data["tokenized_prompt"],
            tokenized_prompt_mask=data["tokenized_prompt_mask"],
        )


class OpenPiPolicy:
    """``openpi.policies.policy.Policy`` with a LIBERO-like config: quantile statistics, 3 of 6 action dimensions."""

    _is_pytorch_model = True

    def __init__(self, model, *, q01, q99, absolute=False):
        self._model, self._sample_kwargs, self._q, self._absolute = model, {}, (q01, q99), absolute

    def _input_transform(self, data):
        prompt = data["prompt"]
        return {
            "state": np.pad(np.asarray(data["observation/state"], np.float32), (0, 3)),
            "image": {"base_0_rgb": np.asarray(data["observation/image"])},
            "image_mask": {"base_0_rgb": np.True_},
            "tokenized_prompt": np.array([len(prompt), prompt.count("o")]),
            "tokenized_prompt_mask": np.array([True, True]),
        }

    def _output_transform(self, data):
        low, high = self._q
        actions = (data["actions"][..., :3] + 1) / 2 * (high - low + 1e-6) + low
        return {"actions": actions + (data["state"][:3] if self._absolute else 0)}

    def infer(self, obs, *, noise):
        inputs = self._input_transform(obs)
        tensors = {key: torch.from_numpy(np.array(inputs[key]))[None] for key in ("state", "tokenized_prompt", "tokenized_prompt_mask")}
        nested = {part: {k: torch.from_numpy(np.array(v))[None] for k, v in inputs[part].items()} for part in ("image", "image_mask")}
        with torch.no_grad():
            actions = self._model.sample_actions(
                "cpu", OpenPiObservation.from_dict({**tensors, **nested}), noise=torch.from_numpy(noise)[None]
            )
        return self._output_transform({"state": inputs["state"], "actions": actions[0].numpy()})
