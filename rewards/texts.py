"""Texts as CLIP's original tokenizer cleans them before it splits them, and the tokenizers, through transformers."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from flowrl.errors import RewardError
from rewards.weights import find_files

if TYPE_CHECKING:
    from rewards.published import Published

__all__ = ["TOKENIZER_FILES", "check_vocabulary", "cleaned_text", "read_tokenizer"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "vocab.txt")

# What ftfy, which the original tokenizer calls, does to a text that was decoded rightly: straight quotes, no ligatures, no full-width
# letters, no control characters.
_SINGLE_QUOTES = re.compile("[\u02bc\u2018-\u201b]")
_DOUBLE_QUOTES = re.compile("[\u201c-\u201f]")
_COMPATIBILITY = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06\uff01-\uffef]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def cleaned_text(text: str) -> str:
    """A text as CLIP's original tokenizer cleans it, in upper and lower case as before.

    HTML entities are resolved, curly quotes straightened, ligatures and full-width letters written out, control characters dropped and
    white space collapsed. Texts that were decoded with a wrong character set (which the original repairs) stay as they are.

    Example:
        >>> cleaned_text("An astronaut\u2019s  glove &amp; a \ufb01sh ")
        "An astronaut's glove & a fish"
    """
    text = html.unescape(html.unescape(str(text)))
    text = _COMPATIBILITY.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _DOUBLE_QUOTES.sub('"', _SINGLE_QUOTES.sub("'", text))
    return " ".join(unicodedata.normalize("NFC", _CONTROL.sub("", text)).split())


def read_tokenizer(kind: str, source: str, published: Published) -> Any:
    """A tokenizer of transformers.

    Args:
        kind: Its class there, such as ``CLIPTokenizer``.
        source: A folder with the tokenizer's files, or a hub id.
        published: Where it is found.

    Raises:
        RewardError: If it is not there or cannot be read.
    """
    import transformers

    files = find_files(source, TOKENIZER_FILES, published)
    folder = next(iter(files.values())).parent
    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RewardError(f"the tokenizer {source} cannot be read ({str(error).splitlines()[0]}); its files: {', '.join(files)}") from error


def check_vocabulary(tokenizer: Any, words: int) -> None:
    """Refuse a tokenizer that has more tokens than the network: on a GPU the first unknown one would end the process.

    Args:
        tokenizer: Of transformers.
        words: Tokens that the network knows.

    Raises:
        RewardError: If it has more.
    """
    if len(tokenizer) > words:
        raise RewardError(f"the tokenizer has {len(tokenizer)} tokens, the network {words}: it is not the model's own")
