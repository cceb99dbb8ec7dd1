"""GenEval as a reward: objects, their number, colour and position, found by a zero-shot detector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowrl.rl import Prompt, RewardBatch, facts_of
from rewards.clip_models import ClipModel, ClipSource, load_clip
from rewards.detectors import OWLV2, DetectorSource, ZeroShotDetector, load_detector
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import photographs
from rewards.learned import Dtype, device_of
from rewards.object_checks import COLOURS, Detection, Verdict, judge, kept, requirements
from rewards.pictures import check_samples
from rewards.published import CLIP_VIT_L14

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GenEval", "colours_of"]

_COLOUR_TEXTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """Whether a picture shows the objects that its prompt asks for (GenEval, arXiv:2310.11513).

    A prompt brings what it asks for as facts, in the keys of GenEval's ``evaluation_metadata.jsonl`` (``tag``, ``include``, ``exclude``),
    so that file can be the prompt file. Parts: ``geneval``, Flow-GRPO's partial reward, which is trained; and ``geneval_correct``, 1 where
    GenEval's own test passes, else 0, with weight 0. `rewards.object_checks` has the rules.

    GenEval finds objects with Mask2Former in mmdet, which no longer installs; this uses a detector of transformers, whose scores mean
    something else: the thresholds are not GenEval's 0.3 and 0.9, and the result is not comparable with published GenEval numbers. Set them
    by looking at ``verdicts`` on pictures of your own model.

    Attributes:
        detector: OWLv2, OWL-ViT or Grounding DINO with its processor: a folder or a hub id.
        detector_sha256: Of its file of weights; None accepts any.
        clip: Names the colours; a folder or a hub id, as for `rewards.CLIPScore`.
        clip_sha256: Of its file of weights; None accepts any.
        clip_tokenizer: Folder or hub id of its tokenizer; None looks beside the weights.
        threshold: Detections must score above it, in [0, 1).
        counting_threshold: The same for prompts with the tag ``counting``.
        overlap: Of two boxes of one name with at least this intersection over union one is dropped; 1 drops none.
        distractors: Names that compete for boxes, so that a horse is not taken for a zebra; OWLv2 and OWL-ViT only.
        device: Where the networks run; ``auto`` is where the samples are.
        dtype: Of the networks' weights and activations.
        batch: Pictures at a time.

    Raises:
        ValueError: If a threshold or ``overlap`` is out of its range, or ``batch`` is not positive.
    """

    detector: str = OWLV2.checkpoint
    detector_sha256: str | None = None
    clip: str = CLIP_VIT_L14.checkpoint
    clip_sha256: str | None = None
    clip_tokenizer: str | None = None
    threshold: float = 0.2
    counting_threshold: float = 0.3
    overlap: float = 0.5
    distractors: tuple[str, ...] = ()
    device: str = "auto"
    dtype: Dtype = "float32"
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 < self.overlap <= 1 or self.batch < 1:
            raise ValueError(f"overlap must lie in (0, 1] and batch must be >= 1, got {self.overlap} and {self.batch}")

    @property
    def weights(self) -> Mapping[str, float]:
        """``geneval``, and ``geneval_correct`` with weight 0."""
        return {"geneval": 1.0, "geneval_correct": 0.0}

    def load(self, device: torch.device | str = "cpu") -> None:
        """Read the weights of both networks now.

        Args:
            device: Where the samples will be.

        Raises:
            RewardError: If weights are missing or do not fit.
        """
        self._detector(self._device(device))
        self._clip(self._device(device))

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`. A picture with a non-finite pixel scores NaN.

        Raises:
            ValueError: If the samples are not pictures, or a prompt's facts are not GenEval's.
            RewardError: If weights are missing or do not fit.
        """
        verdicts = self.verdicts(samples, prompts)
        finite = samples.detach().isfinite().flatten(1).all(1)
        scores = torch.tensor([[verdict.score, float(verdict.correct)] for verdict in verdicts], device=samples.device)
        score, correct = torch.where(finite[:, None], scores.view(-1, 2), torch.nan).unbind(1)
        return RewardBatch({"geneval": score, "geneval_correct": correct})

    def verdicts(self, samples: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """Score, correctness and what is wrong, for each picture.

        Args:
            samples: Pictures (batch, 3, height, width) in [0, 1].
            prompts: One a picture, with facts.

        Raises:
            ValueError: If the samples are not pictures, or a prompt's facts are not GenEval's.
            RewardError: If weights are missing or do not fit.
        """
        check_samples(samples, prompts)
        device = self._device(samples.device)
        with torch.autocast(device.type, enabled=False):
            return [
                judge(found, facts_of(prompt), partial(self._colours, picture))
                for picture, prompt, found in zip(samples, prompts, self._found(samples, prompts, device), strict=True)
            ]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts whose facts are not GenEval's.

        Raises:
            ValueError: If one's are not.
        """
        for prompt in prompts:
            requirements(facts_of(prompt))

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Photographs of a woman and of a flower, each of which is asked for in turn."""
        names = ("flower", "person")
        prompts = [
            Prompt(f"a photo of a {name}", facts={"tag": "single_object", "include": [{"class": name, "count": 1}]}) for name in names
        ]
        hint = "look at GenEval.verdicts and set threshold to the detector's scores"
        return [KnownAnswer.matching("photographs", photographs()[1:], prompts, part="geneval_correct", hint=hint)]

    def _found(self, samples: Tensor, prompts: Sequence[str], device: torch.device) -> list[dict[str, list[Detection]]]:
        """Detections by name; pictures with the same names go through the network together."""
        detector, facts = self._detector(device), [facts_of(prompt) for prompt in prompts]
        names = [_names(fact) for fact in facts]
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, asked in enumerate(names):
            rows.setdefault(asked, []).append(row)
        found: list[dict[str, list[Detection]]] = [{} for _ in facts]
        for asked, members in rows.items():
            others = tuple(name for name in self.distractors if name not in asked)
            for start in range(0, len(members), self.batch):
                chunk = members[start : start + self.batch]
                boxes_of = detector(samples[chunk], (*asked, *others), threshold=min(self.threshold, self.counting_threshold))
                for row, boxes in zip(chunk, boxes_of, strict=True):
                    threshold = self.counting_threshold if facts[row].get("tag") == "counting" else self.threshold
                    found[row] = kept(boxes, threshold=threshold, overlap=self.overlap)
        return found

    def _colours(self, picture: Tensor, name: str, detections: Sequence[Detection]) -> list[str]:
        return colours_of(self._clip(self._device(picture.device)), picture, name, detections)

    def _device(self, samples: torch.device | str) -> torch.device:
        return device_of(self.device, samples)

    def _detector(self, device: torch.device) -> ZeroShotDetector:
        source = DetectorSource(checkpoint=self.detector, sha256=self.detector_sha256)
        return load_detector(source, device, getattr(torch, self.dtype))

    def _clip(self, device: torch.device) -> ClipModel:
        source = ClipSource(checkpoint=self.clip, published=CLIP_VIT_L14, sha256=self.clip_sha256, tokenizer=self.clip_tokenizer)
        return load_clip(source, device, getattr(torch, self.dtype))


def colours_of(clip: Any, picture: Tensor, name: str, detections: Sequence[Detection]) -> list[str]:
    """The colour of each of some objects: the nearest of CLIP's mean text features over three templates, of the object cut out.

    GenEval also greys out what is not in the object's mask; there are no masks here.

    Args:
        clip: The network.
        picture: (3, height, width) in [0, 1].
        name: Of the objects.
        detections: Where they are.
    """
    crops = torch.cat([clip.pixels(_cut(picture, detection)) for detection in detections])
    nearest = (clip.image_features(crops) @ _colour_features(clip, name).T).argmax(1)
    return [COLOURS[index] for index in nearest.tolist()]


@lru_cache(maxsize=512)
def _colour_features(clip: Any, name: str) -> Tensor:
    """Unit vectors, (colour, channel)."""
    features = [clip.text_features([text.format(colour=colour, name=name) for text in _COLOUR_TEXTS]).mean(0) for colour in COLOURS]
    return normalize(torch.stack(features), dim=-1)


def _names(facts: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(want.name for wants in requirements(facts) for want in wants))


def _cut(picture: Tensor, detection: Detection) -> Tensor:
    """The box of a detection, (1, 3, height, width) with at least one pixel."""
    height, width = picture.shape[1:]
    left, top, right, bottom = (round(edge) for edge in detection.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return picture[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
