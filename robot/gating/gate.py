"""What every gate shares: the grid, the boundary, and how a chunk is run, recorded and scored under it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from flowrl.errors import close_match
from flowrl.flow import shifted_times
from flowrl.shapes import randn
from robot.gating.boundary import BOUNDARIES, Boundary
from robot.gating.decision import Decision, inverse_multiplier, multiplier
from robot.gating.record import FixedLatents, GateRecord, State, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrl.shapes import RandomSource

__all__ = ["Gate", "GateConfig", "GateSettings"]

ActionTime = Literal["shared", "gated"]


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What gates of any kind can be told.

    Attributes:
        steps: Denoising steps, at least 1.
        shift: Of the shared grid, see :func:`flowrl.flow.shift_time`.
        boundary: ``clamp``: a latent may stay noisy for ever (the paper); ``finish``: the last step ends at 0; ``normalise``: a
            multiplier is measured against what remains of the shared schedule, so that the latent ends at 0, and not before the last step.
        action: ``shared``: the actions follow the shared grid (the paper); ``gated``: they have a multiplier of their own, and their
            last step ends at 0.
        log_std: Of fresh decisions, log of the standard deviation of ``u``.
        log_std_min: It is clamped to at least this,
        log_std_max: and to at most this.

    Raises:
        ValueError: If a number is out of range or a name unknown.
    """

    steps: int = 5
    shift: float = 1.0
    boundary: Boundary = "clamp"
    action: ActionTime = "shared"
    log_std: float = -0.5
    log_std_min: float = -5.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        shifted_times(self.steps, self.shift)  # refuses what is no grid
        for name, allowed in (("boundary", tuple(BOUNDARIES)), ("action", get_args(ActionTime))):
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}{close_match(str(given), allowed)}")
        if not self.log_std_min <= self.log_std <= self.log_std_max:
            raise ValueError(f"log_std must lie in [{self.log_std_min}, {self.log_std_max}], got {self.log_std}; the spread starts there")


class GateConfig(Protocol):
    """A gate as a config describes it."""

    @property
    def steps(self) -> int:
        """Denoising steps."""
        ...

    def build(self, frames: int, tokens: int, channels: int) -> Gate:
        """A fresh gate, which is the shared schedule; weights from torch's global generator.

        Args:
            frames: Predicted latents.
            tokens: Of a latent.
            channels: Numbers of a token.
        """
        ...


class Gate(nn.Module, ABC):
    """A policy over the denoising schedule: at every step one multiplier per latent, in (0, 2).

    The latent's time goes down by the multiplier times the shared step. As a schedule of a world-action model (:meth:`next`) it takes the
    mean; :meth:`explore` draws, and keeps what :meth:`log_prob` needs.

    Attributes:
        settings: What it was told.
        frames: Predicted latents.
        looks: Whether decisions depend on the state.
    """

    looks = True

    def __init__(self, settings: GateSettings, frames: int) -> None:
        super().__init__()
        if frames < 1:
            raise ValueError(f"a gate needs at least one predicted latent, got frames={frames}")
        self.settings, self.frames = settings, frames
        self.log_std = nn.Parameter(torch.full((self.columns,), settings.log_std))
        self._grid = shifted_times(settings.steps, settings.shift)

    @abstractmethod
    def decide(self, view: View) -> Decision:
        """The law of the multipliers, ``(batch, column)``.

        Args:
            view: What the gate sees.
        """

    @property
    @abstractmethod
    def bias(self) -> nn.Parameter:
        """What is added to every mean, ``(column,)``; 0 in a fresh gate."""

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.settings.steps

    @property
    def grid(self) -> Tensor:
        """The shared times, float64 ``(steps + 1,)``, on the CPU."""
        return self._grid

    @property
    def columns(self) -> int:
        """Multipliers a step: one per latent, and one for the actions where they are gated."""
        return self.frames + (self.settings.action == "gated")

    @property
    def spread(self) -> Tensor:
        """The clamped ``log_std``, ``(column,)``."""
        return self.log_std.clamp(self.settings.log_std_min, self.settings.log_std_max)

    def forward(self, view: View) -> Decision:
        """The same as :meth:`decide`."""
        return self.decide(view)

    def start_from(self, multipliers: Sequence[float]) -> Gate:
        """Make these multipliers the mean everywhere, for example constants that a search found.

        Args:
            multipliers: One per latent, or per column, in (0, 2).

        Returns:
            The gate itself.

        Raises:
            ValueError: If their number or one of them does not fit.
        """
        if len(multipliers) not in (self.frames, self.columns):
            raise ValueError(f"start_from wants {self.frames} multipliers, one per latent, got {len(multipliers)}")
        with torch.no_grad():
            self.bias[: len(multipliers)] = inverse_multiplier(torch.tensor(multipliers, dtype=torch.float64)).to(self.bias)
        return self

    @torch.no_grad()
    def next(self, state: State) -> tuple[Tensor, Tensor]:
        """The schedule of evaluation: times ``(batch, frame)`` of the latents, and of the actions, by the mean decision."""
        return self._next_times(state, self.decide(View.of(state)).mean)

    @torch.no_grad()
    def explore(self, state: State | Tensor, noise: Callable[[int], Tensor]) -> GateRecord:
        """Run a chunk to its end under drawn multipliers.

        Args:
            state: A chunk not yet begun, which is moved; or latents ``(batch, frame, [token,] channel)`` that stay as they are.
            noise: Standard normal noise ``(batch, column)`` of a step; the same for all steps keeps one deviation for the whole chunk.

        Raises:
            ValueError: If the state does not fit the gate.
        """
        run = FixedLatents(state) if isinstance(state, Tensor) else state
        self._check(run)
        times, action_times, drawn = [run.times], [run.action_time], []
        for k in range(self.steps):
            view = View.of(run)
            decision = self.decide(view)
            u = decision.sample(noise(k).to(decision.mean))
            later = self._next_times(run, u)
            counts = self._counts(run, k, later[1])
            run.advance(*later)
            drawn.append((u, decision.log_prob(u), counts, view.latents))
            times.append(run.times)
            action_times.append(run.action_time)
        u, log_prob, counts, latents = (torch.stack(part, dim=1) for part in zip(*drawn, strict=True))
        seen = {"latents": latents, "observed": view.observed} if self.looks else {}
        return GateRecord(
            times=torch.stack(times), action_times=torch.stack(action_times), decisions=u, log_prob=log_prob, counts=counts, **seen
        )

    def sample(self, state: State | Tensor, generator: RandomSource = None) -> tuple[Tensor, Tensor]:
        """Draw a schedule.

        Args:
            state: See :meth:`explore`.
            generator: Source of the noise, fresh at every step.

        Returns:
            Times of the latents, float64 ``(steps + 1, batch, frame)``, and the joint log-probability of each step, nats
            ``(batch, steps)``.
        """
        rows = len(state if isinstance(state, Tensor) else state.times)
        record = self.explore(state, lambda _: randn((rows, self.columns), generator, device=self.log_std.device))
        return record.times, record.log_prob.sum(-1)

    def decisions(self, record: GateRecord) -> Decision:
        """The law of recorded decisions under the present weights, ``(batch, step, column)``, with a graph.

        Args:
            record: What a gate of this kind recorded.
        """
        law = self.decide(record.views)
        shape = record.decisions.shape
        return Decision(law.mean.reshape(shape), law.log_std if law.log_std.ndim == 1 else law.log_std.reshape(shape))

    def log_prob(self, record: GateRecord, rows: slice | Tensor | Sequence[int] = slice(None)) -> Tensor:
        """Log-density of recorded multipliers under the present weights, nats ``(batch, step, column)``, with a graph.

        Args:
            record: What a gate of this kind recorded.
            rows: Which of its rows.
        """
        some = record[rows]
        return self.decisions(some).log_prob(some.decisions)

    def _next_times(self, state: State, u: Tensor) -> tuple[Tensor, Tensor]:
        """Move every time by its multiplier.

        Raises:
            ValueError: If there is no step left.
        """
        if state.step >= self.steps:
            raise ValueError(f"this gate takes {self.steps} steps, all of which are taken")
        k, r = state.step, multiplier(u.double())
        grid = self._grid.to(u.device)
        frames = BOUNDARIES[self.settings.boundary](state.times, r[:, : self.frames], grid, k)
        if self.settings.action == "shared":
            return frames, grid[k + 1]
        boundary = "finish" if self.settings.boundary == "clamp" else self.settings.boundary
        return frames, BOUNDARIES[boundary](state.action_time, r[:, -1], grid, k)

    def _counts(self, state: State, k: int, action_later: Tensor) -> Tensor:
        """See :attr:`GateRecord.counts`; a frame's decision is heard only by actions that still move in a later step."""
        frames = (state.times > 0) & (action_later > 0).expand(len(state.times))[:, None]
        if self.settings.action == "shared":
            return frames
        return torch.cat([frames, (state.action_time > 0)[:, None] & (k < self.steps - 1)], dim=1)

    def _check(self, state: State) -> None:
        """Refuse a chunk that is of another size or under way.

        Raises:
            ValueError: If it is.
        """
        if state.times.shape[1] != self.frames:
            raise ValueError(f"this gate decides for {self.frames} latents, the state has {state.times.shape[1]}; build it for the model")
        if state.step != 0:
            raise ValueError(f"a gate runs a chunk from its beginning, this one has taken {state.step} steps; begin a new one")
