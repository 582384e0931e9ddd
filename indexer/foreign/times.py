"""Times as Go writes them into JSON and zTOCs: RFC 3339."""

import re
from datetime import date
from typing import Final

from indexer.errors import FormatError

_EPOCH: Final = date(1970, 1, 1).toordinal()
_NANO: Final = 1_000_000_000
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_UNSET: Final = frozenset(("", "0001-01-01T00:00:00Z"))


def time_ns(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time; 0 for none, and for Go's zero time, which means none.

    Raises:
        FormatError: this is no time.
    """
    if text in _UNSET:
        return 0
    match = _TIME.fullmatch(text)
    if not match:
        raise FormatError(f"not a time: {text[:100]!r}")
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, hours, minutes = match.group(7, 8, 9, 10)
    try:
        days = date(year, month, day).toordinal() - _EPOCH
    except ValueError as error:
        raise FormatError(f"not a time: {text[:100]!r}") from error
    if hour > 23 or minute > 59 or second > 59:
        raise FormatError(f"not a time: {text[:100]!r}")
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    if sign:
        ahead = (int(hours) * 60 + int(minutes)) * 60
        seconds += ahead if sign == "-" else -ahead
    return seconds * _NANO + int((fraction or "").ljust(9, "0"))
