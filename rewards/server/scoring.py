"""Score a batch so that one bad row does not cost the others their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from flowrl.errors import CheckpointError, MissingExtraError, RewardError
from flowrl.rl import RewardBatch
from rewards.remote.rows import row_batches
from rewards.remote.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flowrl.rl import GroupReward, Reward

__all__ = ["ScoringFaultError", "score_rows"]

_REASON_LENGTH = 500  # characters of an error that are passed on


class ScoringFaultError(RewardError):
    """The reward itself is broken: it scored no row at all, and not because of what the rows hold."""


@torch.no_grad()
def score_rows(
    reward: Reward | GroupReward, samples: Tensor, prompts: Sequence[str], groups: Tensor, *, batch: int, device: torch.device | str
) -> Answer:
    """Score every row that can be scored.

    Where scoring raises, the rows are halved until those that raise stand alone; they get NaN and the reason. Rows of one group of a
    `flowrl.rl.GroupReward` stay together.

    Args:
        reward: What scores.
        samples: ``(row, ..., 3, height, width)`` on the CPU.
        prompts: One a row.
        groups: ``(row,)`` integer.
        batch: Rows scored at once; a group that is larger stays whole.
        device: Where samples are put before they are scored.

    Raises:
        ScoringFaultError: If every row raised, and something else than the ``ValueError`` that a bad picture or prompt gives.
        RewardError: If the reward says that it cannot score at all.
    """
    parts = {name: torch.full((len(prompts),), torch.nan) for name in reward.weights}
    reasons, faults = dict[int, str](), list[Exception]()
    pending = row_batches(groups, batch, whole=getattr(reward, "needs_groups", False))
    while pending:
        units = pending.pop()
        rows = torch.cat(units)
        try:
            scored = _scored(reward, samples[rows].to(device), [prompts[row] for row in rows.tolist()], groups[rows])
        except Exception as error:  # whatever a user's reward raises
            _raise_if_hopeless(error)
            if len(units) > 1:
                pending += [units[: len(units) // 2], units[len(units) // 2 :]]
            else:
                faults.append(error)
                reasons |= dict.fromkeys(rows.tolist(), _reason(error))
            continue
        for name, scores in scored.items():
            parts[name][rows] = scores
    if len(reasons) == len(prompts) and not all(isinstance(error, ValueError) for error in faults):
        raise ScoringFaultError(f"the reward failed on every picture: {_reason(faults[0])}") from faults[0]
    return Answer(parts=parts, reasons=_reasons_of_missing(parts) | reasons)


def _raise_if_hopeless(error: Exception) -> None:
    """Pass on what fewer rows cannot mend: a judge that is gone, weights that cannot be read, a package that is missing."""
    if isinstance(error, RewardError):
        raise error
    if isinstance(error, CheckpointError | MissingExtraError):
        raise ScoringFaultError(_reason(error)) from error


def _scored(reward: Reward | GroupReward, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> dict[str, Tensor]:
    if getattr(reward, "needs_groups", False):
        batch = cast("GroupReward", reward)(samples, prompts, groups)
    else:
        batch = cast("Reward", reward)(samples, prompts)
    names = list(reward.weights)
    if not isinstance(batch, RewardBatch) or set(batch.parts) != set(names) or len(batch) != len(prompts):
        found = f"{sorted(batch.parts)} of {len(batch)} rows" if isinstance(batch, RewardBatch) else f"a {type(batch).__name__}"
        raise TypeError(f"the reward must return a RewardBatch of {sorted(names)} for {len(prompts)} rows, got {found}")
    return {name: batch.parts[name].detach().float().cpu() for name in names}


def _reasons_of_missing(parts: dict[str, Tensor]) -> dict[int, str]:
    """What the reward itself left out; an infinite score is none either."""
    reasons: dict[int, str] = {}
    for name, scores in parts.items():
        for row in (~scores.isfinite()).nonzero()[:, 0].tolist():
            reasons.setdefault(row, f"part {name!r} is {float(scores[row])}")
    return reasons


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON_LENGTH]
