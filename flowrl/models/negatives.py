"""Pipelines that read a negative prompt otherwise than a prompt: without the instruction that they put before prompts."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from flowrl.models.pipeline import DiffusersModel
from flowrl.rl import Prompt, facts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["InstructedModel"]

_NEGATIVE = "is_negative_prompt"


class InstructedModel(DiffusersModel):
    """A model that gives :meth:`encode_prompts` and :meth:`encode_negatives` in place of :meth:`encode_texts`.

    The negative prompt carries a fact, by which it is told from a prompt of the same words wherever texts are encoded or remembered.
    """

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """Named embeddings of what pictures shall show, one row per text, all rows of one shape."""

    @abstractmethod
    def encode_negatives(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """Named embeddings of what guidance leads away from, in the shapes of :meth:`encode_prompts`."""

    @property
    def negative_prompt(self) -> str:
        """The configured text, marked as negative."""
        return Prompt(self.source.negative_prompt, facts={_NEGATIVE: True})

    def encode_texts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """See :class:`DiffusersModel`."""
        negative = [bool(facts_of(prompt).get(_NEGATIVE)) for prompt in prompts]
        if len(set(negative)) > 1:
            rows = [self.encode_texts([prompt]) for prompt in prompts]
            return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return self.encode_negatives(prompts) if negative[0] else self.encode_prompts(prompts)
