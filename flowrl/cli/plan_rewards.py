"""The networks behind a config's rewards, for a plan of memory: nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from flowrl.train.plan import RewardNetwork
    from flowrl.train.trainer import RLTrainer

__all__ = ["reward_networks"]

# The bundled description of the network behind a reward of a class. CLIPScore's depends on its checkpoint, see `_clip`.
CLIPS = {"HPSv2": "clip_vit_h_14", "PickScore": "clip_vit_h_14", "Aesthetic": "clip_vit_l_14"}
# Parameters of networks that are described by no more than their size; ImageReward.pt is 1.79 GB of float32.
PARAMETERS = {"ImageReward": 447_000_000}


def reward_networks(trainer: RLTrainer) -> list[RewardNetwork]:
    """The networks that rewards of training and evaluation keep on the device of the pictures, each once.

    Rewards on a server, on the CPU or without a network take nothing; those of the user's own are unknown and left out.
    """
    from flowrl.rl import with_those_within

    evaluated = trainer.evaluation.rewards if trainer.evaluation else ()
    found: dict[tuple[str, str], RewardNetwork] = {}
    for reward, trained_on in [(trainer.reward, True), *((reward, False) for reward in evaluated)]:
        for part in with_those_within(reward):
            network = _network(part, trained_on=trained_on)
            if network is not None:
                found.setdefault((network.name, str(getattr(part, "checkpoint", ""))), network)
    return list(found.values())


def _network(reward: Any, *, trained_on: bool) -> RewardNetwork | None:
    from flowrl.train.plan import RewardNetwork, picture_scoring, shared_part

    kind = type(reward).__name__
    if getattr(reward, "device", "auto") == "cpu":
        return None
    element = torch.empty(0, dtype=getattr(torch, getattr(reward, "dtype", "float32"))).element_size()
    if kind in PARAMETERS:
        return RewardNetwork(name=kind, weights=PARAMETERS[kind] * element, trained_on=trained_on)
    name = _clip(reward) if kind == "CLIPScore" else CLIPS.get(kind)
    if name is None:
        return None
    part = shared_part(name)
    cost = picture_scoring(part, reward.batch, getattr(torch, reward.dtype))
    return RewardNetwork(name=kind, weights=part.parameters * element, scoring=cost, batch=reward.batch, trained_on=trained_on)


def _clip(reward: Any) -> str:
    """By the checkpoint's name; the sizes of other CLIPs lie between these two."""
    name = reward.checkpoint.lower()
    return "clip_vit_h_14" if any(size in name for size in ("vit-h", "vit_h")) else "clip_vit_l_14"
