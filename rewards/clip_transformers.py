"""transformers' CLIPModel as the network behind a CLIP reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.errors import RewardError
from rewards.texts import check_vocabulary, cleaned_text
from rewards.weights import transformers_module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["TransformersClip"]

LAST_TOKEN = 2  # an end token of 2 in a config means the token of the highest number: older files are wrong, and transformers mends them so


class TransformersClip:
    """A network of ``transformers.CLIPModel`` and a tokenizer; see `rewards.clip_models.ClipNetwork`.

    Raises:
        RewardError: If the tokenizer ends a text with another token than the network reads it at, or has more tokens.
    """

    def __init__(self, module: Any, tokenizer: Any, *, clean: bool) -> None:
        self.module, self._tokenizer, self._clean = module, tokenizer, clean
        text = module.config.text_config
        check_vocabulary(tokenizer, text.vocab_size)
        if text.eos_token_id not in {LAST_TOKEN, tokenizer.eos_token_id}:
            raise RewardError(
                f"the tokenizer ends texts with token {tokenizer.eos_token_id}, the network reads them at {text.eos_token_id}: "
                "the tokenizer is not the model's own"
            )

    @staticmethod
    def of_state(state: Mapping[str, Tensor], settings: Mapping[str, Any], tokenizer: Any, *, clean: bool) -> TransformersClip:
        """Load tensors under transformers' names.

        Args:
            state: Names to tensors.
            settings: Arguments of ``CLIPConfig``.
            tokenizer: The model's own.
            clean: Whether texts are cleaned first as by CLIP's original tokenizer.

        Raises:
            RewardError: If tensors are missing or have other shapes.
        """
        from transformers import CLIPConfig, CLIPModel

        config = CLIPConfig.from_dict(dict(settings))
        return TransformersClip(transformers_module(CLIPModel, config, state), tokenizer, clean=clean)

    @property
    def size(self) -> int:
        """Side of the pictures that it sees, pixels."""
        return int(self.module.config.vision_config.image_size)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by, the exponential of the learned number."""
        return float(self.module.logit_scale.detach().float().exp())

    def tokens(self, text: str) -> Tensor:
        """The numbers of a text's tokens, (1, token), cut to the network's length with the end kept."""
        length = self.module.config.text_config.max_position_embeddings
        words = cleaned_text(text) if self._clean else text
        return self._tokenizer(words, truncation=True, max_length=length, return_tensors="pt").input_ids

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Projected embeddings of preprocessed pictures, (batch, channel)."""
        return self.module.visual_projection(self.module.vision_model(pixel_values=pixels).pooler_output)

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        """Projected embeddings of texts, (batch, channel)."""
        return self.module.text_projection(self.module.text_model(input_ids=tokens).pooler_output)
