"""Prompt files: UTF-8 text, one prompt a line."""

from pathlib import Path

from flowrl.config import asset_path


def load_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a file, one a line; blank lines are skipped, a byte order mark is dropped.

    Args:
        path: A UTF-8 text file; ``assets/...`` is looked up among the bundled assets if there is no such file here.

    Raises:
        ValueError: If the file is missing, is not UTF-8 or holds no prompt.
    """
    path = asset_path(str(path)) if str(path).startswith("assets/") and not Path(path).exists() else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the prompt file {path}: {error.strerror}; give a UTF-8 text file with one prompt a line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8 text") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"the prompt file {path} holds no prompt; write one prompt a line")
    return prompts
