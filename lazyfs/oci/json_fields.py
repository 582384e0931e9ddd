"""Typed access to JSON that strangers wrote.

Every accessor names the field in its error, treats `null` like an absent field (as Go's encoder writes empty
lists and maps), and refuses a value of another type instead of converting it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from indexer.errors import FormatError, LimitExceeded

MAX_DOCUMENT_BYTES: Final = 4 << 20  # what a registry must accept (distribution-spec, "Pushing Manifests")
MAX_NUMBER: Final = (1 << 63) - 1


class Fields:
    """One JSON object and the words that say where it stands."""

    __slots__ = ("_values", "where")

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _typed(self, name: str, kind: type, wanted: str) -> Any:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise FormatError(f"{self.where}: {name!r} is not {wanted}")
        return value

    def _required(self, name: str, value: Any) -> Any:
        if value is None:
            raise FormatError(f"{self.where}: {name!r} is missing")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default the field must be there."""
        value = self._typed(name, str, "a string")
        return checked_text(
            self._required(name, default if value is None else value), f"{self.where}: {name!r}"
        )

    def number(self, name: str) -> int:
        """A whole number from 0 to 2^63 - 1 that must be there."""
        value: int = self._required(name, self._typed(name, int, "a whole number"))
        if not 0 <= value <= MAX_NUMBER:
            raise FormatError(f"{self.where}: {name!r} is out of range")
        return value

    def flag(self, name: str) -> bool:
        """A boolean; absent means false."""
        return bool(self._typed(name, bool, "true or false"))

    def child(self, name: str) -> "Fields":
        """An object; absent reads as an empty one."""
        return Fields(self._typed(name, dict, "an object") or {}, f"{self.where}, {name}")

    def children(self, name: str, most: int) -> "Iterator[Fields]":
        """The objects of a list of at most `most`; absent reads as an empty list."""
        for number, value in enumerate(self._list(name, most)):
            where = f"{self.where}, {name}[{number}]"
            if not isinstance(value, dict):
                raise FormatError(f"{where} is not an object")
            yield Fields(value, where)

    def texts(self, name: str, most: int = 10_000) -> tuple[str, ...]:
        """The strings of a list of at most `most`; absent reads as an empty list."""
        return tuple(checked_text(value, f"{self.where}: {name!r}") for value in self._list(name, most))

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are all strings; absent reads as an empty one."""
        where = f"{self.where}: {name!r}"
        values = self._typed(name, dict, "an object") or {}
        return {checked_text(key, where): checked_text(value, where) for key, value in values.items()}

    def keys(self, name: str) -> tuple[str, ...]:
        """The sorted keys of an object used as a set; absent reads as an empty one."""
        where = f"{self.where}: {name!r}"
        return tuple(sorted(checked_text(key, where) for key in self._typed(name, dict, "an object") or {}))

    def _list(self, name: str, most: int) -> list[Any]:
        values: list[Any] = self._typed(name, list, "a list") or []
        if len(values) > most:
            raise LimitExceeded(f"{self.where}: {name!r} has {len(values)} entries, more than {most}")
        return values


def checked_text(value: Any, where: str) -> str:
    """`value`, a string that can be encoded as UTF-8.

    Raises:
        FormatError: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise FormatError(f"{where} holds something that is not a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FormatError(f"{where} holds half of a surrogate pair") from None
    return value


def parse_object(data: bytes, where: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Fields:
    """The JSON object that `data` holds; `where` names it in errors.

    A key that stands twice in one object is refused: readers disagree on which one counts, and a document
    must not say one thing to a scanner and another to a mount.

    Raises:
        FormatError: not UTF-8, not JSON, not an object, nested too deeply, or with a repeated key.
        LimitExceeded: longer than `max_bytes`.
    """
    value = _load(data, where, max_bytes)
    if not isinstance(value, dict):
        raise FormatError(f"{where}: not a JSON object")
    return Fields(value, where)


def parse_objects(data: bytes, where: str, most: int) -> list[Fields]:
    """The objects of the JSON list that `data` holds, at most `most`; errors as for `parse_object`."""
    value = _load(data, where, MAX_DOCUMENT_BYTES)
    return list(Fields({"": value}, where).children("", most))


def _load(data: bytes, where: str, max_bytes: int) -> Any:
    if len(data) > max_bytes:
        raise LimitExceeded(f"{where}: {len(data)} bytes, more than {max_bytes}")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except FormatError as error:
        raise FormatError(f"{where}: {error.what}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {str(error)[:100]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("a key stands twice in one object")
    return values


def _no_constant(name: str) -> Any:
    raise FormatError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """A number that can be written down again: infinity cannot."""
    number = float(text)
    if math.isinf(number):
        raise FormatError("a number is too large")
    return number
