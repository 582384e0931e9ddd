"""Which licences are SPDX licence expressions (SPDX 2.3, annex D)."""

from functools import cache
from itertools import accumulate
from typing import Final

from boolean import Expression, ParseError
from license_expression import ExpressionError, Licensing, get_spdx_licensing

_MAX_DEPTH: Final = 50  # of parentheses; expressions are written by functions that call themselves


def parse_expression(text: str) -> Expression | None:
    """The expression that `text` is; None where it is none, or names licences that SPDX does not know."""
    if max(accumulate((character == "(") - (character == ")") for character in text), default=0) > _MAX_DEPTH:
        return None
    try:
        return _known().parse(text, validate=True, strict=True) if text else None
    except (ExpressionError, ParseError):
        return None


@cache
def _known() -> Licensing:
    """All licences that SPDX knows; takes a moment to load."""
    return get_spdx_licensing()
