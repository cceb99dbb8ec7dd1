"""A CLIP tokenizer for a handful of words, made without downloads."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import CLIPTokenizer

__all__ = ["byte_symbols", "clip_tokenizer", "word_merges"]

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins that byte-level BPE writes for the bytes 0 to 255 (GPT-2's table, which CLIP uses too)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = (byte for byte in range(256) if byte not in visible)
    table = {byte: chr(byte) for byte in visible} | {byte: chr(256 + rank) for rank, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


def _merged(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == best:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return symbols


def word_merges(words: Iterable[str], *, end: str = WORD_END) -> list[tuple[str, str]]:
    """BPE merges after which each of `words` is a single token.

    A later merge has a lower priority than all earlier ones, so the merges added for one word cannot break up a word that was
    already whole.

    Args:
        words: Words without spaces, as byte symbols; CLIP's are lower-case.
        end: What a word's last symbol carries; "" for the tokenizers that mark a word's beginning instead.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        symbols = _merged([*word[:-1], word[-1] + end], ranks)
        while len(symbols) > 1:
            ranks[symbols[0], symbols[1]] = len(ranks)
            symbols = _merged(symbols, ranks)
    return list(ranks)


def clip_tokenizer(vocabulary: Sequence[str], *, max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer that writes each word of `vocabulary` as one token and any other text byte by byte.

    Args:
        vocabulary: Words or whole phrases; phrases are split at white space. Lower-cased, as CLIP does.
        max_length: Tokens to which a prompt is padded or cut, start and end included.

    Raises:
        ConfigError: If a word is more than a run of letters, which CLIP would split before it looks for merges.
    """
    from transformers import CLIPTokenizer

    words = list(dict.fromkeys(word for phrase in vocabulary for word in phrase.lower().split()))
    if odd := [word for word in words if not (word.isascii() and word.isalpha())]:
        raise ConfigError(f"vocabulary words must be runs of the letters a-z, got {odd}; write digits and signs as words")
    merges = word_merges(words)
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *dict.fromkeys(a + b for a, b in merges), START, END]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
        Path(folder, "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)
    tokenizer.pad_token = END
    return tokenizer
