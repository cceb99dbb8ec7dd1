"""One environment, asked by commands and answering by values; whatever it raises is an answer too."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot.envs.base import Frame

if TYPE_CHECKING:
    import gymnasium

    from robot.envs.base import EnvSource

__all__ = ["Act", "Answer", "Command", "Crash", "Lost", "Reset", "Slot", "Step"]

_ROUNDING = 1e-6  # of the box's width; float32 arithmetic may overshoot by so much


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Begin an episode.

    Attributes:
        seed: Of the episode.
        pictures: Every so many answers of the episode, and its last, carry a picture; 0 for none.
    """

    seed: int
    pictures: int = 0


@dataclass(frozen=True)
class Act:
    """Execute one action for one control step.

    Attributes:
        action: ``(dof,)`` float32, physical units; what lies outside the action space is clipped.
    """

    action: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the environment shows after a command.

    Attributes:
        frame: Its observations.
        reward: Of the control step; 0 after a reset.
        terminated: Whether the task ended.
        truncated: Whether the time limit was reached.
        success: Whether the task is solved now.
        clipped: Whether the action lay outside the action space.
        picture: uint8 ``(height, width, 3)``; None if none was asked for, or the environment cannot draw.
    """

    frame: Frame
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    clipped: bool = False
    picture: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class Crash:
    """The environment is gone, by its own fault.

    Attributes:
        error: What happened, one line.
        details: The traceback, where there is one.
        unmade: Whether no environment could be made in the first place.
        fatal: Whether no other episode could do better, because the environment breaks its contract.
    """

    error: str
    details: str = ""
    unmade: bool = False
    fatal: bool = False


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The environment is gone because another one took their process with it; its episode has to be repeated."""


Command: TypeAlias = Reset | Act
Answer: TypeAlias = Step | Crash | Lost


class Slot:
    """Place for one environment, made when first needed and again after a crash."""

    def __init__(self, source: EnvSource) -> None:
        """Remember what to make.

        Args:
            source: Of the environment.
        """
        self._source = source
        self._env: gymnasium.Env[Any, Any] | None = None
        self._pictures = self._steps = 0

    def answer(self, command: Command, on_made: Callable[[], None]) -> Step | Crash:
        """Do what a command says.

        Args:
            command: What to do.
            on_made: Called when an environment had to be made and was.
        """
        try:
            if self._env is None:
                self._env = self._source.make()
                on_made()
            step = self._reset(self._env, command) if isinstance(command, Reset) else self._act(self._env, command.action)
        except Exception as error:  # a simulator may raise anything, and only this episode is to pay
            unmade = self._env is None
            self.close()
            return Crash(error=_tell(error), details=traceback.format_exc(), unmade=unmade, fatal=isinstance(error, _ContractError))
        return step

    def close(self) -> None:
        """Let go of the environment, in whatever state it is."""
        env, self._env = self._env, None
        if env is not None:
            with contextlib.suppress(Exception):  # it may be broken already
                env.close()

    def _reset(self, env: gymnasium.Env[Any, Any], command: Reset) -> Step:
        frame, _ = env.reset(seed=command.seed)
        self._pictures, self._steps = command.pictures, 0
        return Step(frame=_frame(frame), picture=self._picture(env, last=False))

    def _act(self, env: gymnasium.Env[Any, Any], action: NDArray[np.float32]) -> Step:
        allowed, clipped = _clip(env, action)
        frame, reward, terminated, truncated, info = env.step(allowed)
        self._steps += 1
        if "success" not in info:
            raise _ContractError("its step() gives no info['success']; it must tell at every step whether the task is solved")
        return Step(
            frame=_frame(frame),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
            success=bool(info["success"]),
            clipped=clipped,
            picture=self._picture(env, last=bool(terminated or truncated)),
        )

    def _picture(self, env: gymnasium.Env[Any, Any], *, last: bool) -> NDArray[np.uint8] | None:
        if not self._pictures or (self._steps % self._pictures and not last):
            return None
        try:
            picture = env.render()
        except Exception:  # no back end to draw with is no reason to lose the episode
            return None
        return picture if isinstance(picture, np.ndarray) else None


class _ContractError(Exception):
    """The environment is not what an EnvSource promises."""


def _frame(value: object) -> Frame:
    if not isinstance(value, Mapping):
        raise _ContractError(f"its observations are {type(value).__name__}; they must be a mapping of names to arrays")
    return {name: np.array(array) for name, array in value.items()}  # a simulator may write into its own arrays later


def _clip(env: gymnasium.Env[Any, Any], action: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    """The action inside the box, and whether it lay outside by more than rounding."""
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    if action.shape != low.shape:
        raise _ContractError(f"its actions have shape {low.shape}, the policy's {action.shape}")
    inside = np.clip(action, low, high)
    with np.errstate(invalid="ignore", over="ignore"):
        slack = np.nan_to_num(_ROUNDING * (high - low), posinf=0.0)
    return inside.astype(np.float32, copy=False), bool((np.abs(action - inside) > slack).any())


def _tell(error: Exception) -> str:
    """One line: what and where."""
    text = " ".join(str(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames and not isinstance(error, _ContractError) else ""
    kind = "" if isinstance(error, _ContractError) else f"{type(error).__name__}: "
    return f"{kind}{text}{place}"
