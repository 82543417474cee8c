"""Self-contained web pages, whose content security policy forbids loading anything."""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any


def render_web_page(title: str, style: str, body: str, data: Any, script: str) -> str:
    """Return the page as HTML; write it as UTF-8.

    Args:
        title: any string; it cannot become markup.
        style: CSS.
        body: HTML.
        data: JSON-ready; the script finds it in the element `data`.
        script: JavaScript, run at the end of the body.

    """
    # Without `<`, so that no string in the data can close the script element or open a comment.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": escape(title), "style": style, "body": body, "data": text, "script": script}
    return fill(files(__package__).joinpath("frame.html").read_text(encoding="utf-8"), parts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Return a template with parts in place of `{{name}}`; what is filled in is not searched for placeholders."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
