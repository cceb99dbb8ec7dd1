"""A small Gemma 2 tokenizer and text encoder, which Sana and Lumina-Image 2.0 read prompts with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from flowrl.models.tiny.texts import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Gemma2Model, PreTrainedTokenizerFast

__all__ = ["gemma2", "gemma_tokenizer"]

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def gemma_tokenizer(vocabulary: Sequence[str] = WORDS, *, max_length: int = 8192) -> PreTrainedTokenizerFast:
    """A tokenizer in Gemma's form: ``<bos>`` first, no end, padding on the right.

    It is the bare class with its whole state in one file: transformers 5 does not keep another vocabulary than Gemma's in a
    ``GemmaTokenizer`` that it loads.

    Args:
        vocabulary: Words that become one token each, at a word's beginning; any other text is written sign by sign.
        max_length: Tokens to which a prompt is cut where nothing else is said.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [(special, 0.0) for special in _SPECIAL] + [("▁" + word, -1.0) for word in dict.fromkeys(vocabulary)]
    # Unigram takes the split of highest total score: a whole word beats its letters.
    pieces += [(sign, -5.0) for sign in ("▁", "\n", *signs)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_SPECIAL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", _SPECIAL.index("<bos>"))])
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, padding_side="right", **special)


def gemma2(tokenizer: PreTrainedTokenizerFast, *, width: int = 32, layers: int = 2, token_std: float = 0.7) -> Gemma2Model:
    """A Gemma 2 network without a head, in evaluation mode, its weights from torch's global generator.

    Args:
        tokenizer: Whose tokens it reads.
        width: Channels of an embedding.
        layers: At least 2, since some pipelines read the prompt before the last one.
        token_std: Of the word embeddings; the usual 0.02 makes prompts nearly alike.
    """
    from transformers import Gemma2Config, Gemma2Model

    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "head_dim": width // 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": width // 2, "max_position_embeddings": 8192}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **sizes, **heads, **special))
    nn.init.normal_(encoder.get_input_embeddings().weight, std=token_std)
    return encoder.eval()
