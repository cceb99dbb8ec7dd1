"""Finding named objects in pictures with a zero-shot detector of transformers: OWLv2, OWL-ViT, Grounding DINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import RewardError
from flowrl.models.quiet import quiet_libraries
from rewards.object_checks import Detection
from rewards.pictures import levels
from rewards.published import Published
from rewards.weights import check_sha256, find_first, loaded_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["OWLV2", "DetectorSource", "ZeroShotDetector", "load_detector"]

OWLV2 = Published(name="OWLv2", repository="google/owlv2-large-patch14-ensemble", gigabytes=1.75, parameters=437_610_760)

_JOINT = {"owlvit", "owlv2"}  # answer several names in one pass; others are asked for one name at a time
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class DetectorSource:
    """Which detector.

    Attributes:
        checkpoint: A folder that ``save_pretrained`` wrote, or ``owner/name`` or ``owner/name@revision`` on the hub; with its processor.
        sha256: Of the file of weights; None accepts any.
    """

    checkpoint: str
    sha256: str | None = None


class ZeroShotDetector:
    """A loaded detector with its processor."""

    def __init__(self, network: Any, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._network = network.to(device=device, dtype=dtype).requires_grad_(False).eval()  # noqa: FBT003 - torch's name for it
        self._processor, self._device, self._dtype = processor, device, dtype

    def __call__(self, samples: Tensor, names: Sequence[str], *, threshold: float = 0.0) -> list[list[Detection]]:
        """The boxes of each picture, overlapping ones too.

        Args:
            samples: Pictures (batch, 3, height, width) in [0, 1].
            names: What to look for, the same in all pictures.
            threshold: Scores must be above it.
        """
        pictures = [picture.permute(2, 0, 1).numpy() for picture in levels(samples)]
        if self._network.config.model_type in _JOINT:
            return self._asked(pictures, names, [[f"a photo of a {name}" for name in names]] * len(pictures), threshold)
        found: list[list[Detection]] = [[] for _ in pictures]
        for name in names:
            for boxes, more in zip(found, self._asked(pictures, [name], [f"{name.lower()}."] * len(pictures), threshold), strict=True):
                boxes.extend(more)
        return found

    @torch.no_grad()
    def _asked(self, pictures: Sequence[Any], names: Sequence[str], texts: Sequence[Any], threshold: float) -> list[list[Detection]]:
        inputs = self._processor(images=list(pictures), text=list(texts), return_tensors="pt").to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        outputs = self._network(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        sizes = [tuple(picture.shape[1:]) for picture in pictures]
        results = self._processor.post_process_grounded_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [_detections(result, names) for result in results]


def _detections(result: dict[str, Any], names: Sequence[str]) -> list[Detection]:
    indices = result["labels"].tolist() if len(names) > 1 else [0] * len(result["scores"])
    rows = zip(indices, result["scores"].tolist(), result["boxes"].tolist(), strict=True)
    return [Detection(name=names[index], score=score, box=tuple(box)) for index, score, box in rows]


@loaded_once
def load_detector(source: DetectorSource, device: torch.device, dtype: torch.dtype) -> ZeroShotDetector:
    """A detector on a device, read once per process.

    Args:
        source: Which.
        device: Where it runs.
        dtype: Of its weights and activations.

    Raises:
        RewardError: If it cannot be read, is no detector, or its weights do not fill it.
    """
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    where, _, revision = source.checkpoint.partition("@")
    options = {"revision": revision} if revision else {}
    if source.sha256 is not None:
        check_sha256(find_first(source.checkpoint, _WEIGHTS, OWLV2), source.sha256)
    try:
        with quiet_libraries():
            network, report = AutoModelForZeroShotObjectDetection.from_pretrained(where, output_loading_info=True, **options)
            processor = AutoProcessor.from_pretrained(where, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RewardError(f"the detector {source.checkpoint} cannot be read ({str(error).splitlines()[0]}); {OWLV2.advice}") from error
    if missing := sorted(report["missing_keys"]):
        raise RewardError(f"the weights of {source.checkpoint} lack {', '.join(missing[:3])}, {len(missing)} in all; {OWLV2.advice}")
    return ZeroShotDetector(network, processor, device, dtype)
