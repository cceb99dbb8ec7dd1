"""A self-contained HTML page: one style for every report."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.train.figures import duration, figure, signed, words
from flowrl.train.whole import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["png_address", "write_page"]


def write_page(path: Path, template: Path, context: Mapping[str, Any]) -> Path:
    """Render a template into a page, whole or not at all.

    Args:
        path: The page.
        template: A Jinja file that extends ``page.html.j2``, with its text in the block ``content``; the filters ``figure``, ``signed``,
            ``words`` and ``duration`` write numbers and names as people read them.
        context: What the template names; ``name`` is the title.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [template.parent, Path(__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": figure, "signed": signed, "words": words, "duration": duration}
    text = environment.get_template(template.name).render(**context)
    return write_whole(path, text)


def png_address(path: Path) -> str:
    """A PNG as an address that holds it whole, so that the page stays one file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
