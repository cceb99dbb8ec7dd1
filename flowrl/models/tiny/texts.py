"""Small tokenizers and text encoders of the families that image models read prompts with, made without downloads.

Each is the real transformers class with random weights, and survives ``save_pretrained`` and ``from_pretrained`` unchanged.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowrl.errors import ConfigError
from flowrl.models.tiny.words import byte_symbols, word_merges

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import (
        CLIPTextModel,
        CLIPTokenizer,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen3ForCausalLM,
        T5EncoderModel,
        T5Tokenizer,
        UMT5EncoderModel,
    )

__all__ = [
    "WORDS",
    "clip_text_encoder",
    "qwen3",
    "qwen_tokenizer",
    "qwen_vl",
    "random_weights",
    "t5_encoder",
    "t5_tokenizer",
    "umt5_encoder",
]

WORDS = ("a", "photo", "of", "red", "green", "blue", "square", "circle", "house", "cat", "on", "the")
"""A vocabulary for those who only want to try a pipeline; other words are written letter by letter."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
"""Qwen3's form of a conversation; without thinking the answer opens with an empty thought."""

TEMPLATE_WORDS = (
    *("system", "user", "assistant", "Describe", "the", "image", "by", "detailing", "color", "shape", "size", "texture", "quantity"),
    *("text", "spatial", "relationships", "of", "objects", "and", "background"),
)
"""Words that the pipelines write around a prompt; as single tokens they take as many places as in Qwen's own vocabulary."""

_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


@contextmanager
def random_weights(seed: int) -> Iterator[None]:
    """Random initial values come from this seed inside the context; torch's global state is afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's, which fork_rng restores
        yield


def t5_tokenizer(vocabulary: Sequence[str] = WORDS, *, max_length: int = 16) -> T5Tokenizer:
    """A T5 tokenizer that writes each word of ``vocabulary`` as one token and any other text letter by letter.

    Args:
        vocabulary: Words or phrases; phrases are split at white space.
        max_length: Tokens to which a prompt is cut where nothing else is said, the end included.
    """
    from transformers import T5Tokenizer

    words = _words(vocabulary)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    # Unigram takes the split of highest total score: a whole word beats its letters.
    pieces = [("▁" + word, -1.0) for word in words] + [(letter, -5.0) for letter in ["▁", *letters] if "▁" + letter not in words]
    return T5Tokenizer(vocab=[*special, *pieces], extra_ids=0, model_max_length=max_length)


def t5_encoder(tokenizer: T5Tokenizer, *, width: int = 32, layers: int = 1) -> T5EncoderModel:
    """A T5 encoder in evaluation mode, its weights from torch's global generator (see :func:`random_weights`)."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_t5_sizes(tokenizer, width, layers))).eval()


def umt5_encoder(tokenizer: T5Tokenizer, *, width: int = 32, layers: int = 1) -> UMT5EncoderModel:
    """A UMT5 encoder, which has position biases in every layer; see :func:`t5_encoder`."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer, width, layers))).eval()


def clip_text_encoder(tokenizer: CLIPTokenizer, *, width: int = 32, layers: int = 2, token_std: float = 0.7) -> CLIPTextModel:
    """A CLIP text encoder without a projection; ``token_std`` keeps the embeddings of different words apart."""
    from transformers import CLIPTextConfig, CLIPTextModel

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            **special,
        )
    )
    return _with_distinct_words(encoder, token_std)


def qwen_tokenizer(vocabulary: Sequence[str] = WORDS, *, max_length: int = 512) -> Qwen2Tokenizer:
    """Qwen's byte-level BPE with its chat template: each word of ``vocabulary`` is one token, also after a space.

    Args:
        vocabulary: Words or phrases; phrases are split at white space.
        max_length: Tokens to which a prompt is cut where nothing else is said.
    """
    from transformers import Qwen2Tokenizer

    symbols = byte_symbols()
    words = list(dict.fromkeys([*TEMPLATE_WORDS, *_words(vocabulary)]))
    merges = word_merges([2 * symbols[ord("\n")], *(start + word for word in words for start in ("", symbols[ord(" ")]))], end="")
    tokens = dict.fromkeys([*symbols, *(a + b for a, b in merges), *_QWEN_SPECIAL])
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=max_length,
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def qwen3(tokenizer: Qwen2Tokenizer, *, width: int = 32, layers: int = 2, token_std: float = 0.7) -> Qwen3ForCausalLM:
    """A Qwen3 language model; its ``model`` is the bare network that some pipelines take instead."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _with_distinct_words(Qwen3ForCausalLM(Qwen3Config(**_qwen_sizes(tokenizer, width, layers), head_dim=width // 2)), token_std)


def qwen_vl(tokenizer: Qwen2Tokenizer, *, width: int = 32, layers: int = 2, token_std: float = 0.7) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL model, which image pipelines use for its language part; ``width`` is a multiple of 16."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    half = width // 4  # of a head's channels, in pairs: time, height, width
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1.0e6, "mrope_section": sections}
    text = _qwen_sizes(tokenizer, width, layers) | {"rope_parameters": rope}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    marks = dict.fromkeys(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), len(tokenizer) - 1)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
    return _with_distinct_words(Qwen2_5_VLForConditionalGeneration(config), token_std)


def _words(vocabulary: Sequence[str]) -> list[str]:
    words = list(dict.fromkeys(word for phrase in vocabulary for word in phrase.split()))
    if odd := [word for word in words if not (word.isascii() and word.isalpha())]:
        raise ConfigError(f"vocabulary words must be runs of the letters a-z, got {odd}; write digits and signs as words")
    return words


def _t5_sizes(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    shape = {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": layers, "num_heads": 2}
    return shape | {"vocab_size": len(tokenizer), "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "pad_token_id": 0}


def _qwen_sizes(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 2}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return shape | special | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "max_position_embeddings": 2048}


def _with_distinct_words(encoder: Any, token_std: float) -> Any:
    nn.init.normal_(encoder.get_input_embeddings().weight, std=token_std)
    return encoder.eval()
