"""What client and server say to each other: pictures and prompts one way as safetensors, scores the other way as JSON. Never pickle.

A question is one safetensors body. Its tensors:

- ``samples``: ``(batch, 3, height, width)`` or, of videos, ``(batch, frame, 3, height, width)``; float32, float16 or bfloat16 in [0, 1], or
  uint8 levels, 255 being 1;
- or, in place of it, ``png``, the bytes of all PNG files one after another, and ``png_lengths``, how many bytes each has;
- ``groups``: ``(batch,)`` int64, rows of the same number are compared with each other; only a group reward looks;
- ``request``: UTF-8 JSON as uint8: ``{"prompts": [text, …], "facts": [{…}, …], "frames": 0, "timeout_s": 60.0}``; of these
  only ``prompts`` must be there.

An answer is JSON: ``{"parts": {"clip": [0.31, null]}, "reasons": {"1": "why row 1 has no score"}}``. A row without a score is null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flowrl.rl import Prompt, facts_of
from flowrl.shapes import levels_of
from rewards.remote.png import decode_png, encode_png, png_size

if TYPE_CHECKING:
    from rewards.remote.limits import Limits

__all__ = [
    "CONTENT_TYPE",
    "IDENTITY_HEADER",
    "PROTOCOL",
    "Answer",
    "Question",
    "WireFormat",
    "pack_answer",
    "pack_question",
    "unpack_answer",
    "unpack_question",
]

CONTENT_TYPE = "application/x-safetensors"
PROTOCOL = 1
"""Changes with what this module describes; client and server must have the same."""
IDENTITY_HEADER = "x-flowrl-reward"
"""Goes with every answer: the same text for every server of the same reward."""
WireFormat = Literal["float32", "float16", "uint8", "png"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_PICTURE_AXES, _VIDEO_AXES = 4, 5
_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class Question:
    """Samples that want scores.

    Attributes:
        samples: ``(batch, 3, height, width)``, or ``(batch, frame, 3, height, width)``; float32 in [0, 1] on the CPU.
        prompts: One a sample, with their facts.
        groups: ``(batch,)`` int64.
        timeout_s: How long the asker waits; None if it did not say.
    """

    samples: Tensor
    prompts: Sequence[str]
    groups: Tensor
    timeout_s: float | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.prompts)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Scores of some samples.

    Attributes:
        parts: Name of a part to its scores, ``(batch,)`` float32; NaN where there is none.
        reasons: Why a row has no score; row to text.
    """

    parts: Mapping[str, Tensor]
    reasons: Mapping[int, str] = field(default_factory=dict)


def pack_question(question: Question, wire: WireFormat) -> bytes:
    """Write a question.

    Args:
        question: Samples, prompts and groups.
        wire: How pictures travel: ``float32`` to the bit, ``float16``, or as 8-bit levels, raw (``uint8``) or compressed (``png``).
            Samples with a pixel that is no number travel as such levels in float32, whatever was asked for: the reward must see it.
    """
    samples = question.samples.detach().cpu()
    frames = samples.shape[1] if samples.ndim == _VIDEO_AXES else 0
    about = {
        "prompts": [str(prompt) for prompt in question.prompts],
        "facts": [dict(facts_of(prompt)) for prompt in question.prompts],
        "frames": frames,
        "timeout_s": question.timeout_s,
    }
    request = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    return save({**_pictures(samples, wire), "groups": question.groups.detach().cpu().long().contiguous(), "request": request})


def _pictures(samples: Tensor, wire: WireFormat) -> dict[str, Tensor]:
    if wire in _DTYPES:
        return {"samples": samples.to(_DTYPES[wire]).contiguous()}
    levels, known = levels_of(samples), samples.isfinite()
    if not known.all():  # 8 bits have no NaN, and a broken picture must not come out as a good one
        return {"samples": torch.where(known, levels / _LEVELS, samples.float()).contiguous()}
    levels = levels.byte()
    if wire == "uint8":
        return {"samples": levels.contiguous()}
    files = [encode_png(picture) for picture in levels.flatten(0, -4)]
    lengths = torch.tensor([len(file) for file in files])
    return {"png": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), "png_lengths": lengths}


def unpack_question(body: bytes, limits: Limits) -> Question:
    """Read a question that anybody may have sent.

    Args:
        body: A safetensors file.
        limits: What is allowed; looked at before pictures are decoded.

    Raises:
        TooLargeError: If there are too many pictures or pixels.
        ValueError: If it is malformed; the message says where.
    """
    try:
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the body is not safetensors ({error})") from error
    about = _about(tensors)
    prompts, frames = _prompts(about), about.get("frames", 0)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 0:
        raise ValueError(f"frames must be a count, 0 for pictures, got {frames!r}")
    if "samples" in tensors:
        samples = _raw_samples(tensors["samples"], len(prompts), limits)
    else:
        samples = _png_samples(tensors, len(prompts), frames, limits)
    return Question(samples=samples, prompts=prompts, groups=_groups(tensors, len(prompts)), timeout_s=_timeout(about))


def _about(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    request = tensors.get("request")
    if request is None or request.dtype != torch.uint8 or request.ndim != 1:
        raise ValueError("the tensor 'request' must hold JSON as uint8, see rewards.remote.wire")
    try:
        about = json.loads(request.numpy().tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tensor 'request' is not JSON ({error})") from error
    if not isinstance(about, dict):
        raise ValueError(f"'request' must be a JSON object, it is a {type(about).__name__}")
    return about


def _prompts(about: Mapping[str, Any]) -> list[str]:
    texts = about.get("prompts")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("'prompts' must be a list of texts, one a picture")
    facts = about.get("facts", [{}] * len(texts))
    if not isinstance(facts, list) or len(facts) != len(texts) or not all(isinstance(fact, dict) for fact in facts):
        raise ValueError(f"'facts' must be a list of {len(texts)} objects, one a prompt")
    return [Prompt(text, facts=fact) if fact else text for text, fact in zip(texts, facts, strict=True)]


def _timeout(about: Mapping[str, Any]) -> float | None:
    timeout = about.get("timeout_s")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= sys.float_info.max:
        raise ValueError(f"'timeout_s' must be seconds > 0, got {timeout!r}")
    return float(timeout)


def _groups(tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    groups = tensors.get("groups")
    if groups is None:
        return torch.arange(rows)
    if groups.dtype != torch.int64 or groups.shape != (rows,):
        raise ValueError(f"'groups' must be int64 of shape ({rows},), got {groups.dtype} of shape {tuple(groups.shape)}")
    return groups


def _raw_samples(samples: Tensor, rows: int, limits: Limits) -> Tensor:
    if samples.ndim not in (_PICTURE_AXES, _VIDEO_AXES) or samples.shape[-3] != 3 or samples.numel() == 0:  # noqa: PLR2004 - RGB
        raise ValueError(
            f"'samples' must be (batch, 3, height, width) or (batch, frame, 3, height, width), none of them 0, got {tuple(samples.shape)}"
        )
    if len(samples) != rows:
        raise ValueError(f"got {len(samples)} samples but {rows} prompts; send one prompt a sample")
    limits.check_pictures([(samples.shape[-2], samples.shape[-1])] * samples.shape[:-3].numel())
    if samples.dtype == torch.uint8:
        return samples.float().div_(_LEVELS)
    if samples.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"'samples' must be float32, float16, bfloat16 or uint8, got {samples.dtype}")
    return samples.float()


def _png_samples(tensors: Mapping[str, Tensor], rows: int, frames: int, limits: Limits) -> Tensor:
    files = _png_files(tensors)
    if len(files) != rows * max(frames, 1):
        raise ValueError(f"got {len(files)} PNG files for {rows} prompts of {max(frames, 1)} frames; send one a frame")
    sizes = [png_size(file) for file in files]
    limits.check_pictures(sizes)
    if len(set(sizes)) > 1:
        raise ValueError(f"all pictures of a request must be of one size, got {sorted(set(sizes))[:2]} pixels; send them apart")
    levels = torch.stack([decode_png(file) for file in files])
    return (levels.unflatten(0, (rows, frames)) if frames else levels).float().div_(_LEVELS)


def _png_files(tensors: Mapping[str, Tensor]) -> list[bytes]:
    data, lengths = tensors.get("png"), tensors.get("png_lengths")
    if data is None or lengths is None:
        raise ValueError("the body must hold the tensor 'samples', or 'png' and 'png_lengths'")
    if data.dtype != torch.uint8 or data.ndim != 1 or lengths.dtype != torch.int64 or lengths.ndim != 1:
        raise ValueError("'png' must be uint8 of shape (bytes,) and 'png_lengths' int64 of shape (files,)")
    if bool((lengths < 0).any()) or bool((lengths > len(data)).any()) or int(lengths.sum()) != len(data):
        raise ValueError(f"'png_lengths' must add up to the {len(data)} bytes of 'png'")
    return [file.numpy().tobytes() for file in data.split(lengths.tolist())]


def pack_answer(answer: Answer) -> bytes:
    """Write an answer; what is not finite becomes null."""
    parts = {name: [value if math.isfinite(value) else None for value in scores.tolist()] for name, scores in answer.parts.items()}
    return json.dumps({"parts": parts, "reasons": {str(row): reason for row, reason in answer.reasons.items()}}).encode()


def unpack_answer(body: bytes, names: Sequence[str], rows: int) -> Answer:
    """Read an answer.

    Args:
        body: JSON.
        names: The parts that must be there; others are left out.
        rows: How many scores each must have.

    Raises:
        ValueError: If it is no such answer. No score is ever made up for what is missing.
    """
    try:
        found = json.loads(body, parse_int=float)  # a whole number too large for one is infinite, which is no score
        given = {name: found["parts"][name] for name in names}
        reasons = {int(row): str(reason) for row, reason in found["reasons"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the answer is not what rewards.remote.wire describes ({type(error).__name__}: {error})") from error
    return Answer(parts={name: _scores(name, values, rows) for name, values in given.items()}, reasons=reasons)


def _scores(name: str, values: object, rows: int) -> Tensor:
    if not isinstance(values, list) or len(values) != rows:
        raise ValueError(f"part {name!r} of the answer must have {rows} scores")
    if not all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        raise ValueError(f"part {name!r} of the answer must hold numbers or null")
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
