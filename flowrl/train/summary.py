"""One update as one line of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.rl import part_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flowrl.rl import Reward
    from flowrl.train.state import Counters

__all__ = ["train_line"]


def train_line(
    counters: Counters, reward: Reward, rewards: Tensor, groups: int, metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The metrics of one finished update.

    Args:
        counters: After the update.
        reward: For the names and weights of the parts.
        rewards: ``(row, view, granularity, part)`` over all processes, prompt-major.
        groups: How many there are in it.
        metrics: Of the learner.
        seconds: Wall time by phase.

    Returns:
        ``reward_spread/step_j`` is the standard deviation within a group, averaged over groups and granularities, of the weighted
        reward of the pictures that branched at the j-th stochastic step (one entry where all steps share a picture).
    """
    weighted = (rewards * part_weights(reward)).sum(-1)  # (row, view, granularity)
    spread = weighted.reshape(groups, -1, *weighted.shape[1:]).std(1).mean((0, 2))  # (view,)
    return {
        "kind": "train",
        "update": counters.update - 1,
        "reward": float(weighted.mean()),
        "reward_std": float(spread.mean()),
        **{f"reward/{name}": float(rewards[..., i].mean()) for i, name in enumerate(reward.weights)},
        **{f"reward_spread/step_{j}": float(value) for j, value in enumerate(spread)},
        **metrics,
        "network_evaluations": counters.network_evaluations,
        "trained_states": counters.trained_states,
        "images": counters.images,
        "seconds": counters.seconds,
        **{f"seconds_{name}": value for name, value in seconds.items()},
    }
