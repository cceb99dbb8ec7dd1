"""How well a policy imitates episodes that it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flowrl.shapes import seeded_generator, state_mean
from robot.learning.imitator import Draws

if TYPE_CHECKING:
    from robot.learning.imitator import Imitator
    from robot.learning.recipe import Recipe
    from robot.learning.windows import Windows
    from robot.normalise import NormStats

__all__ = ["validate"]

_LOSS_WINDOWS, _ACTION_WINDOWS = 512, 64


@torch.no_grad()
def validate(recipe: Recipe, module: Imitator, windows: Windows, stats: NormStats, seed: int) -> dict[str, float]:
    """Measure with noise that stays the same from one validation to the next.

    Args:
        recipe: What the policy is.
        module: Its networks; left in training mode.
        windows: Of the held-out episodes.
        stats: Normaliser of the actions.
        seed: Of windows and noise.

    Returns:
        ``loss``, the training loss without augmentation; ``action_error``, the root-mean-square distance between sampled and
        demonstrated actions over the executed steps, in normalised units. Demonstrations with several ways to act leave an error however
        good the policy.
    """
    device = windows.actions.device
    rows = torch.randperm(len(windows), generator=seeded_generator(seed, 3))[:_LOSS_WINDOWS]
    module.eval()
    data = stats.normalise(windows.chunks(rows))
    draws = Draws.fresh(recipe.process, (len(rows), recipe.horizon, recipe.action.dof), (seed, 4)).part(slice(None), device)
    loss = float(module(data, dict(windows.observation(rows).values), draws.noise, draws.time).mean())
    policy = recipe.policy(module.encoder, module.network, stats)
    few = rows[:_ACTION_WINDOWS]
    chunk = policy.act(windows.observation(few), seeded_generator(seed, 5)).values.to(device)
    executed = slice(recipe.first, recipe.first + recipe.execute)
    error = (stats.normalise(chunk) - data[: len(few)])[:, executed]
    module.train()
    return {"loss": loss, "action_error": float(state_mean(error**2).mean().sqrt())}
