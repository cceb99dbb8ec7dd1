"""The LAION aesthetic predictor: how people rate a picture, whatever its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from flowrl.errors import RewardError
from rewards.clip_models import ClipModel, ClipSource, load_clip
from rewards.known_pictures import PHOTOGRAPHS, degraded, photographs
from rewards.learned import LearnedReward
from rewards.published import AESTHETIC, CLIP_VIT_L14
from rewards.self_test import KnownAnswer
from rewards.weights import check_sha256, find_file, loaded_once, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Aesthetic", "linear_head"]

_LAYERS = (0, 2, 4, 6, 7)  # of the published nn.Sequential; between them is dropout, and no activation


@dataclass(frozen=True, kw_only=True)
class Aesthetic(LearnedReward):
    """The predicted rating, about 1 to 10; good pictures have 6 to 7. The prompt plays no part.

    Five linear layers without activations on the unit vector of the picture's CLIP ViT-L/14 features (LAION's improved aesthetic
    predictor, ``sac+logos+ava1-l14-linearMSE``).

    Attributes:
        checkpoint: File of the layers, a path or ``owner/name:file`` on the hub.
        sha256: Of that file; None accepts any.
        clip: The CLIP below, a folder or a hub id, as for `rewards.CLIPScore`.
        clip_sha256: Of its file of weights; None accepts any.
        clip_tokenizer: Read with it but not used; None looks beside the weights.

    Raises:
        ValueError: If a value is out of its range.
    """

    checkpoint: str = AESTHETIC.checkpoint
    sha256: str | None = None
    clip: str = CLIP_VIT_L14.checkpoint
    clip_sha256: str | None = None
    clip_tokenizer: str | None = None

    part: ClassVar[str] = "aesthetic"

    def known_answers(self) -> tuple[KnownAnswer, ...]:
        """Three photographs, of which most must rate higher than the same ones made blocky."""
        good = photographs()
        pictures, order = torch.cat([good, degraded(good)]), tuple((row, row + len(good)) for row in range(len(good)))
        hint = "are CLIP (ViT-L/14 of OpenAI) and the layers those that belong together?"
        case = KnownAnswer(name="sharp and blocky", pictures=pictures, prompts=PHOTOGRAPHS * 2, order=order, share=2 / 3, hint=hint)
        return (case,)

    def _network(self, device: torch.device, dtype: torch.dtype) -> tuple[ClipModel, nn.Module]:
        source = ClipSource(checkpoint=self.clip, published=CLIP_VIT_L14, sha256=self.clip_sha256, tokenizer=self.clip_tokenizer)
        return load_clip(source, device, dtype), _head(self.checkpoint, self.sha256, device)

    def _scores(self, network: Any, samples: Tensor, prompts: Sequence[str]) -> Tensor:  # noqa: ARG002 - only the picture counts
        clip, head = network
        features = clip.image_features(clip.pixels(samples))
        if features.shape[-1] != head[0].in_features:
            raise RewardError(
                f"{self.clip} gives {features.shape[-1]} features, the layers on top want {head[0].in_features}; {CLIP_VIT_L14.advice}"
            )
        return head(features).squeeze(-1)


def linear_head(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The five linear layers ``layers.0`` to ``layers.7`` that the aesthetic predictor and ImageReward share, as float32 module.

    Args:
        state: ``layers.N.weight`` (output, input) and ``layers.N.bias``.

    Raises:
        RewardError: If a layer is missing, or the layers do not follow one another down to one number.
    """
    names = [f"layers.{index}.{kind}" for index in _LAYERS for kind in ("weight", "bias")]
    if missing := [name for name in names if name not in state]:
        raise RewardError(f"the layers on top are incomplete: {', '.join(missing)} are missing")
    sizes = [tuple(state[f"layers.{index}.weight"].shape) for index in _LAYERS]
    if any(len(size) != 2 for size in sizes) or [size[0] for size in sizes] != [*(size[1] for size in sizes[1:]), 1]:  # noqa: PLR2004
        raise RewardError(f"the layers on top do not follow one another down to one number: they are {sizes}, (output, input) each")
    head = nn.Sequential()
    for index in _LAYERS:
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()}, assign=True)
        head.append(layer)
    return head.requires_grad_(False).eval()  # noqa: FBT003 - torch's name for it


@loaded_once
def _head(checkpoint: str, sha256: str | None, device: torch.device) -> nn.Module:
    path = find_file(checkpoint, AESTHETIC)
    check_sha256(path, sha256)
    return linear_head(read_tensors(path)).to(device)
