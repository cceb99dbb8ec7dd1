"""Members of one architecture called as one network (``torch.func.vmap`` over their stacked weights)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.composition.member import Member

__all__ = ["Stack"]


class _Asked(Protocol):
    """What is needed of a question."""

    @property
    def x(self) -> Tensor:
        """State."""
        ...

    @property
    def time(self) -> Tensor:
        """Own time."""
        ...


class Stack:
    """The networks of members whose :class:`robot.Member` names its ``network`` and ``predictor``.

    Weights are copied when the stack is made: train members afterwards, and it is out of date.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        """Stack the members' weights.

        Args:
            members: All with a ``network`` of the same architecture.

        Raises:
            ValueError: If one has none, or the architectures differ.
        """
        modules = [member.network for member in members if member.network is not None and member.predictor is not None]
        shapes = [{name: tuple(value.shape) for name, value in module.state_dict().items()} for module in modules]
        if len(modules) < len(members) or len({type(module) for module in modules}) > 1 or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "vmap needs members with networks of one architecture (FlowPolicy gives its own; a Member of your own sets network and "
                f"predictor), got {[type(member.network).__name__ for member in members]}; leave vmap out"
            )
        self._module = modules[0]
        self._state: Any = stack_module_state(list(modules))
        self._predictor = members[0].predictor

    def fits(self, queries: Mapping[int, _Asked], conditions: Sequence[Any]) -> bool:
        """Whether all members are asked about states and conditions of one shape."""
        if len(queries) != len(conditions) or len({tuple(query.x.shape) for query in queries.values()}) > 1:
            return False
        return len({tuple(c.shape) if isinstance(c, Tensor) else None for c in conditions} - {None}) == 1

    def __call__(self, queries: Mapping[int, _Asked], conditions: Sequence[Any]) -> dict[int, Tensor]:
        """Every member's prediction in one call."""

        def one(state: Any, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            def network(*inputs: Tensor) -> Tensor:
                return functional_call(self._module, state, inputs)

            return self._predictor(network)(x, time, condition)  # type: ignore[misc]

        order = sorted(queries)
        states = torch.stack([queries[index].x for index in order])
        times = torch.stack([queries[index].time for index in order])
        answers = vmap(one, randomness="different")(self._state, states, times, torch.stack(list(conditions)))
        return dict(zip(order, answers, strict=True))
