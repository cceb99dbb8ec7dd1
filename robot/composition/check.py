"""What cannot be composed, refused with the reason."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.composition.member import Member

__all__ = ["action_size", "check_actions", "check_asked_always", "check_sizes", "warn_of_mismatch"]

_AVERAGED = ("none", "delta", "rot6d")
_MISMATCH = math.log(1.25)


def check_actions(members: Sequence[Member]) -> None:
    """Compare what members say about their actions, each against the first one that says it.

    Raises:
        ValueError: If names, number of dimensions, control rates or rotations do not fit together.
    """
    told = [member for member in members if member.action is not None]
    names: dict[int, tuple[str, str]] = {}
    for member in told:
        _check_rate(told[0], member)
        _check_rotation(member, alone=len(members) == 1)
        for own, dim in enumerate(_dims(member)):
            name = member.action.names[own]  # type: ignore[union-attr]
            first, label = names.setdefault(dim, (name, member.label))
            if first != name:
                raise ValueError(
                    f"dimension {dim} is {first!r} for {label} and {name!r} for {member.label}; only equal actions can be composed: "
                    "map them by name with dims=…, or convert one policy's actions in its adapter"
                )
    sizes = {member.label: len(_dims(member)) for member in told if member.dims is None}
    sizes |= {member.label: size for member in members if member.dims is None and (size := _stats_size(member)) is not None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the members' actions differ in their number of dimensions: {sizes}; say which are which with dims=…")


def check_asked_always(members: Sequence[Member]) -> None:
    """Refuse members whose velocities would be reused after resampling, which puts other states into the rows.

    Raises:
        ValueError: If a member is asked at some steps only.
    """
    for member in members:
        if member.every > 1:
            raise ValueError(
                f"the operator 'fkc' resamples its particles at every step, so the velocities of {member.label} cannot be reused with "
                f"every={member.every}; set every to 1, or take another operator"
            )


def check_sizes(members: Sequence[Member], dof: int) -> None:
    """Refuse a normaliser of another size than the dimensions it is for.

    Args:
        members: That take part.
        dof: Dimensions of the composed action.

    Raises:
        ValueError: If a member's offset and scale have another length than its dimensions.
    """
    for member in members:
        wanted, size = dof if member.dims is None else len(member.dims), _stats_size(member)
        if size not in (None, wanted):
            raise ValueError(
                f"the normaliser of {member.label} has {size} dimensions, but it acts on {wanted} of the chunk's {dof}; "
                "say which with dims=…, or ask for a chunk of its size"
            )


def _dims(member: Member) -> tuple[int, ...]:
    names = member.action.names if member.action is not None else ()
    if member.dims is not None and names and len(member.dims) != len(names):
        raise ValueError(f"{member.label} has {len(names)} action names and {len(member.dims)} dims; give one for each")
    return member.dims if member.dims is not None else tuple(range(len(names)))


def _stats_size(member: Member) -> int | None:
    scale = torch.as_tensor(member.scale)
    return None if scale.ndim == 0 else len(scale)


def _check_rate(first: Member, member: Member) -> None:
    rates = [m.action.control_rate_hz for m in (first, member) if m.action is not None]
    if len(set(rates)) > 1:
        raise ValueError(
            f"{first.label} acts at {rates[0]} Hz and {member.label} at {rates[1]} Hz: their steps are not the same moments; "
            "resample one policy's chunk in its adapter"
        )


def _check_rotation(member: Member, *, alone: bool) -> None:
    rotation = member.action.rotation if member.action is not None else "none"
    if not alone and rotation not in _AVERAGED:
        raise ValueError(
            f"{member.label} writes rotations as {rotation}, whose averages are no rotations between; "
            f"allowed: {', '.join(_AVERAGED)}: convert to rot6d in the adapter"
        )


def action_size(members: Sequence[Member]) -> int | None:
    """Dimensions of the composed action as far as the members tell; None where no member does."""
    sizes = [size for member in members if (size := _stats_size(member)) is not None and member.dims is None]
    sizes += [member.action.dof for member in members if member.action is not None and member.dims is None]
    sizes += [max(member.dims) + 1 for member in members if member.dims is not None]
    return max(sizes, default=None)


def warn_of_mismatch(mismatch: Mapping[str, float]) -> None:
    """Say which members cannot be queried at one noise level for all dimensions."""
    large = {name: value for name, value in mismatch.items() if value > _MISMATCH}
    if large:
        listed = ", ".join(f"{name} by a factor {math.exp(value):.2f}" for name, value in large.items())
        warnings.warn(
            f"normaliser mismatch: the scales of {listed} differ between dimensions, so no single noise level is right for all of them; "
            "their predicted actions are combined in raw units, which is approximate. Retrain with one normaliser to be exact",
            stacklevel=4,
        )
