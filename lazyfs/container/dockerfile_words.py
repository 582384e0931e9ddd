"""Words of a Dockerfile's instruction: quotes, escapes, variables.

Source: Dockerfile reference, "Environment replacement".
"""

import re
from collections.abc import Mapping
from typing import Final

from lazyfs.errors import ContainerError

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE: Final = (
    rf"\$(?:(?P<bare>{_NAME})|\{{(?P<braced>{_NAME})(?:(?P<how>:?[-+])(?P<other>[^{{}}]*))?\}})"
    r"|(?P<dollar>\$)(?!\{)"
)
_OUTSIDE: Final = re.compile(
    rf"(?P<space>\s+)|'(?P<literal>[^']*)'|(?P<quote>\")|\\(?P<escaped>.)|{_VARIABLE}|(?P<plain>[^\s'\"\\$]+)",
    re.DOTALL,
)
_INSIDE: Final = re.compile(
    rf"(?P<quote>\")|\\(?P<escaped>[\"\\$])|{_VARIABLE}|(?P<plain>\\|[^\"\\$]+)", re.DOTALL
)


def split_words(text: str, values: Mapping[str, str]) -> list[str]:
    """The words of a text, with variables replaced by their values, and by nothing if they have none.

    Raises:
        ContainerError: a quote or brace is not closed, or is followed by what we do not know.
    """
    return _parsed(text, values, split=True)


def one_word(text: str, values: Mapping[str, str]) -> str:
    """The same for a text that is one word, spaces and all."""
    return "".join(_parsed(text, values, split=False))


def _parsed(text: str, values: Mapping[str, str], *, split: bool) -> list[str]:
    words: list[str] = []
    word: str | None = None  # none has begun
    at, quoted = 0, False
    while at < len(text):
        found = (_INSIDE if quoted else _OUTSIDE).match(text, at)
        if found is None:
            raise ContainerError(f"{text!r} cannot be understood from {text[at:]!r} on")
        at = found.end()
        if found.lastgroup == "space" and split:
            words += [] if word is None else [word]
            word = None
            continue
        if found.lastgroup == "quote":
            quoted = not quoted
        word = (word or "") + _meant(found, values)
    if quoted:
        raise ContainerError(f"{text!r}: a quotation is not closed")
    return words if word is None else [*words, word]


def _meant(found: re.Match[str], values: Mapping[str, str]) -> str:
    parts = found.groupdict()
    name = parts["bare"] or parts["braced"]
    if name is None:
        return "" if parts["quote"] else next(filter(None, map(parts.get, _LITERALS)), "")
    value, how = values.get(name), parts["how"] or ""
    there = bool(value) if how.startswith(":") else value is not None
    if how and there == how.endswith("+"):
        return one_word(parts["other"], values)
    return value or "" if not how.endswith("+") else ""


_LITERALS: Final = ("space", "literal", "escaped", "dollar", "plain")
