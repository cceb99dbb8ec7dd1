"""ImageReward (arXiv:2304.05977): how well people like a picture for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rewards.aesthetic import linear_head
from rewards.blip import Blip
from rewards.known_pictures import PHOTOGRAPHS, photographs
from rewards.learned import LearnedReward
from rewards.preprocessing import ClipPixels
from rewards.published import BERT_TOKENIZER, IMAGE_REWARD
from rewards.self_test import KnownAnswer
from rewards.texts import check_vocabulary, read_tokenizer
from rewards.weights import check_sha256, find_file, loaded_once, read_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ImageReward"]

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the scores of the published data; part of the published network
PROMPT_TOKENS = 35  # prompts are cut to this, start and end included


@dataclass(frozen=True, kw_only=True)
class ImageReward(LearnedReward):
    """The standardised score, mean 0 and standard deviation 1 over the published data; good pictures have more than 1.

    BLIP reads prompt and picture together, and five linear layers without activations turn its first token into a number x; the score is
    (x − 0.16717362830052426) / 1.0333394966054072. Prompts are cut to 35 tokens, as published.

    Attributes:
        checkpoint: File of the weights, a path or ``owner/name:file`` on the hub.
        sha256: Of that file; None accepts any.
        tokenizer: Folder or hub id of BERT's tokenizer (uncased).

    Raises:
        ValueError: If a value is out of its range.
    """

    checkpoint: str = IMAGE_REWARD.checkpoint
    sha256: str | None = None
    tokenizer: str = BERT_TOKENIZER.repository

    part: ClassVar[str] = "image_reward"

    def known_answers(self) -> tuple[KnownAnswer, ...]:
        """Three photographs, each of which fits its own description better than the others'."""
        hint = "are weights and tokenizer those of ImageReward?"
        return (KnownAnswer.matching("photographs", photographs(), PHOTOGRAPHS, hint=hint),)

    def _network(self, device: torch.device, dtype: torch.dtype) -> _Network:
        return _load(self.checkpoint, self.sha256, self.tokenizer, device, dtype)

    def _scores(self, network: _Network, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return (network(samples, prompts) - MEAN) / STD


class _Network:
    """BLIP, the layers on top, and the tokenizer."""

    def __init__(self, blip: Blip, head: nn.Module, tokenizer: Any, dtype: torch.dtype) -> None:
        self._blip, self._head, self._tokenizer, self._dtype = blip, head, tokenizer, dtype
        self._pixels, self._tokens = ClipPixels(size=blip.size), lru_cache(maxsize=16384)(self._tokenize)

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = self._pixels(samples).to(self._dtype)
        tokens, mask = (torch.stack(rows).to(samples.device) for rows in zip(*map(self._tokens, map(str, prompts)), strict=True))
        return self._head(self._blip(pixels, tokens, mask).float()).squeeze(-1)

    def _tokenize(self, prompt: str) -> tuple[Tensor, Tensor]:
        words = self._tokenizer(prompt, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt")
        return words.input_ids[0], words.attention_mask[0]


@loaded_once
def _load(checkpoint: str, sha256: str | None, tokenizer: str, device: torch.device, dtype: torch.dtype) -> _Network:
    path = find_file(checkpoint, IMAGE_REWARD)
    check_sha256(path, sha256)
    state = read_tensors(path)
    blip = Blip.of_state({name.removeprefix("blip."): tensor for name, tensor in state.items() if name.startswith("blip.")})
    head = linear_head({name.removeprefix("mlp."): tensor for name, tensor in state.items() if name.startswith("mlp.")})
    blip.requires_grad_(False).eval().to(device=device, dtype=dtype)  # noqa: FBT003 - torch's name for it
    bert = read_tokenizer("BertTokenizer", tokenizer, BERT_TOKENIZER)
    check_vocabulary(bert, blip.words)
    return _Network(blip, head.to(device), bert, dtype)
