"""Whether the words that a prompt asks for can be read in the picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from flowrl.errors import RewardError, require
from flowrl.rl import RewardBatch, facts_of
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import drawn_word
from rewards.pictures import check_samples, levels
from rewards.weights import loaded_once

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["OCRAccuracy", "edit_distance", "text_accuracy", "wanted_text"]

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|«([^»]+)»')


@dataclass(frozen=True, kw_only=True)
class OCRAccuracy:
    """How much of the wanted text is read in the picture, in [0, 1]: the OCR reward of Flow-GRPO (arXiv:2505.05470, Sec. 4.1).

    ``1 − min(d, n) / n`` with d the edit distance between what is read and what is wanted, and n the length of what is wanted, both in
    lower case and without white space. It is 1 if the wanted text stands anywhere in what is read, and 0 if nothing is read. The wanted
    text is the fact ``text`` of the prompt, else the first text in double quotes.

    The engine is RapidOCR (``pip install 'flowrl-torch[ocr]'``), whose wheel brings the PP-OCR models that are used by default: nothing is
    downloaded. Flow-GRPO used PaddleOCR's own build of an older model of this family, so numbers are close and not equal.

    Attributes:
        detector: ONNX file of another text detector; None takes the one in the wheel.
        recogniser: ONNX file of another recogniser; None takes the one in the wheel, which reads Latin and Chinese script.
        characters: The recogniser's character list, if it is not inside its file.
        least_score: Lines that the engine is less sure of are not counted, in [0, 1]. Flow-GRPO counts all: 0.
        detection_side: Pixels; the detector enlarges a picture whose shorter side is below this. Less is faster and misses small text.
        device: Where the engine runs; ``cuda`` needs onnxruntime-gpu.
        threads: Of the engine on the CPU.

    Raises:
        ValueError: If ``least_score`` lies outside [0, 1], or ``detection_side`` or ``threads`` is below 1.
    """

    detector: str | None = None
    recogniser: str | None = None
    characters: str | None = None
    least_score: float = 0.0
    detection_side: int = 736
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.least_score <= 1:
            raise ValueError(f"least_score must lie in [0, 1], got {self.least_score}")
        if self.detection_side < 1 or self.threads < 1:
            raise ValueError(f"detection_side and threads must be >= 1, got {self.detection_side} and {self.threads}")

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``ocr``."""
        return {"ocr": 1.0}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`. A picture with a non-finite pixel scores NaN.

        Raises:
            ValueError: If the samples are not pictures, or a prompt does not say which text is wanted.
            MissingExtraError: If RapidOCR is not installed.
            RewardError: If the engine fails.
        """
        check_samples(samples, prompts)
        wanted = [wanted_text(prompt) for prompt in prompts]
        finite = samples.detach().isfinite().flatten(1).all(1)
        read = [self.read(picture) for picture in levels(samples)]
        scores = [text_accuracy(*texts) for texts in zip(read, wanted, strict=True)]
        return RewardBatch({"ocr": torch.where(finite, torch.tensor(scores, device=samples.device), torch.nan)})

    def load(self, device: torch.device | str = "cpu") -> None:
        """Start the engine now, so that what is missing shows before a long run.

        Args:
            device: Where the samples will be; the engine runs where the field ``device`` says.

        Raises:
            MissingExtraError: If RapidOCR is not installed.
            RewardError: If the engine does not start.
        """
        del device
        _engine(self)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that do not say which text is wanted.

        Raises:
            ValueError: If one does not.
        """
        for prompt in prompts:
            wanted_text(prompt)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Two drawn words, each of which is asked for in turn."""
        words = ("OPEN", "Library")
        pictures, prompts = torch.stack([drawn_word(word) for word in words]), [f'a sign that says "{word}"' for word in words]
        return [KnownAnswer.matching("two drawn words", pictures, prompts, margin=0.5)]

    def read(self, picture: Tensor) -> str:
        """All text in a picture, its lines joined by spaces in the order in which the engine finds them.

        Args:
            picture: (height, width, 3), 8-bit RGB on the CPU.

        Raises:
            RewardError: If the engine fails.
        """
        engine = _engine(self)
        try:
            found = engine(picture.flip(-1).numpy())  # the engine reads BGR
        except Exception as error:  # of ONNX Runtime or OpenCV, which share no base class
            raise RewardError(f"the OCR engine failed on a picture of {tuple(picture.shape)}: {error}") from error
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return " ".join(text for text, score in lines if score >= self.least_score)


def wanted_text(prompt: str) -> str:
    """The text that a picture shall show: the prompt's fact ``text``, else what it has in double quotes first.

    Raises:
        ValueError: If it says neither.
    """
    fact = facts_of(prompt).get("text")
    quoted = _QUOTED.search(prompt)
    text = str(fact) if fact is not None else next(filter(None, quoted.groups())) if quoted else ""
    if not _plain(text):
        raise ValueError(
            f"OCRAccuracy needs the wanted text in double quotes, or as the fact 'text' of a .jsonl prompt; {prompt!r} has neither"
        )
    return text


def text_accuracy(read: str, wanted: str) -> float:
    """``1 − min(d, n) / n`` as in :class:`OCRAccuracy`.

    Args:
        read: What was found, any text.
        wanted: What should be there; not blank.
    """
    read, wanted = _plain(read), _plain(wanted)
    distance = 0 if wanted in read else min(edit_distance(read, wanted), len(wanted))
    return 1 - distance / len(wanted)


def edit_distance(one: str, other: str) -> int:
    """The least number of insertions, deletions and replacements that turn one text into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


@loaded_once
def _engine(settings: OCRAccuracy) -> Any:
    """The engine, loaded once a process."""
    require("onnxruntime", "ocr")
    module = require("rapidocr", "ocr")
    named = {"Det.model_path": settings.detector, "Rec.model_path": settings.recogniser, "Rec.rec_keys_path": settings.characters}
    given = {name: file for name, file in named.items() if file is not None}
    if missing := [file for file in given.values() if not Path(file).is_file()]:
        raise RewardError(f"there is no file {', '.join(missing)}; leave it out for the model that comes with RapidOCR")
    params = {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,
        "Det.limit_side_len": settings.detection_side,
        "EngineConfig.onnxruntime.intra_op_num_threads": settings.threads,
        "EngineConfig.onnxruntime.use_cuda": settings.device == "cuda",
    }
    try:
        return module.RapidOCR(params=params | given)
    except Exception as error:
        raise RewardError(f"the OCR engine does not start: {error}") from error
