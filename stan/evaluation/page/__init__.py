"""The templates of the reports: HTML, Markdown, CSS, JavaScript and SVG as files of their own, filled by Jinja2."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


def render(name: str, **values: Any) -> str:
    """Fill a template of this folder; what goes into HTML and SVG is escaped."""
    return _ENVIRONMENT.get_template(name).render(values)


def _code(text: str) -> str:
    """HTML of text with words in backquotes."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html", "svg"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["code"] = _code
