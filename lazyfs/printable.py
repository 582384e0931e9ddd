"""Strangers' text made fit to be shown: names and messages must not command a terminal or fake lines.

What `str.isprintable` denies is taken for dangerous: control characters, what escape sequences begin with in
both forms (ECMA-48, 5.3), marks that turn the direction of writing, and bytes that are no UTF-8.
"""

import json
import re
from typing import Final

_UNUSUAL: Final = re.compile(r"[^ -~]")
_UNUSUAL_IN_JSON: Final = re.compile(r"[^ -~\n]")


def masked(text: str) -> str:
    """`text` with "?" for each character that is not printable, as ls(1) writes names on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: str) -> str:
    r"""`text` as one line, with escapes such as \x1b for what is not printable."""
    return _UNUSUAL.sub(_escaped, " ".join(text.split()))


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else match[0].encode("unicode_escape").decode("ascii")


def printable_json(document: str) -> str:
    """A JSON document that says the same with escapes for what is not printable (RFC 8259, section 7)."""
    return _UNUSUAL_IN_JSON.sub(_json_escaped, document)


def _json_escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]
