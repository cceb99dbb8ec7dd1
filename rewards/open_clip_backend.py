"""open_clip as the network behind a CLIP reward, for checkpoints that transformers' CLIP cannot hold and as a cross-check."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import RewardError, require
from rewards.clip_conversion import CONSTANTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["OpenClipNetwork", "mend_torchvision"]

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_kept: list[Any] = []  # torch forgets a library's operators with the object


def mend_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not match torch, as beside a CPU build of torch.

    Everything but ``torchvision.ops.nms`` and ``torchvision.io`` then works. Does nothing where torchvision is absent, imports as it is, or
    fails in another way.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            return
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    importlib.import_module("torchvision")


class OpenClipNetwork:
    """A network of open_clip and its own tokenizer; see `rewards.clip_models.ClipNetwork`."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module, self._tokenizer = module, tokenizer

    @staticmethod
    def of_state(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> OpenClipNetwork:
        """Load a checkpoint in open_clip's format.

        Args:
            state: Its names to tensors.
            settings: The arguments of ``open_clip.CLIP``.

        Raises:
            MissingExtraError: If open_clip is not installed.
            RewardError: If the checkpoint does not fit.
        """
        mend_torchvision()
        open_clip = require("open_clip", "open-clip")
        try:
            with torch.random.fork_rng(devices=[]):  # the initial values, soon overwritten, must not move anybody's random numbers
                module = open_clip.CLIP(**settings)
            module.load_state_dict({name: value for name, value in state.items() if name not in CONSTANTS})
        except (RuntimeError, TypeError) as error:
            raise RewardError(f"open_clip's CLIP does not take the checkpoint: {error}") from error
        return OpenClipNetwork(module.eval(), open_clip.SimpleTokenizer(context_length=settings["text_cfg"].get("context_length", 77)))

    @property
    def size(self) -> int:
        """Side of the pictures that it sees, pixels."""
        size = self.module.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by, the exponential of the learned number."""
        return float(self.module.logit_scale.float().exp())

    def tokens(self, text: str) -> Tensor:
        """The numbers of a text's tokens, (1, token); open_clip cleans and cuts it."""
        return self._tokenizer([text])

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Projected embeddings of preprocessed pictures, (batch, channel)."""
        return self.module.encode_image(pixels)

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        """Projected embeddings of texts, (batch, channel)."""
        return self.module.encode_text(tokens)
