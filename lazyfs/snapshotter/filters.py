r"""containerd's filter language, as its `pkg/filters` parses it.

    selectors := selector ("," selector)*               all must hold
    selector  := fieldpath [operator value]             without an operator: the field is there
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_-]+
    operator  := "==" | "!=" | "~="
    value     := quoted | field | what follows an operator up to a comma or white space
    quoted    := "..." with Go's escapes; after "~=" also |...| and /.../

Blanks between tokens are skipped. Where the grammar in containerd's comment and its scanner disagree, the
scanner is followed: a bare value cannot begin with a quote, "." or an operator's character.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

from msgspec import Struct

from lazyfs.snapshotter.model import BadSnapshotCall, Info

Operator = Literal["", "==", "!=", "~="]

_FIELD: Final = re.compile(r"[A-Za-z0-9_-]+")
_VALUE: Final = re.compile(r"(?![.=!~])[^\s,\x00-\x1f\x7f]+")
_OPERATOR: Final = re.compile(r"[=!~]+")
_BLANK: Final = re.compile(r"\s*")
_QUOTED: Final = re.compile(r'(["|/])((?:\\.|(?!\1)[^\\\n\0])*)\1')
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_LETTERS: Final = dict(zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True))
_LONGEST: Final = 64 << 10


class Selector(Struct, frozen=True):
    """One condition on one field.

    Attributes:
        path: the field's name, in its parts.
        operator: "" asks whether the field is there.
        value: what is compared with; "" if there is no operator.
    """

    path: tuple[str, ...]
    operator: Operator
    value: str = ""

    def holds(self, info: Info) -> bool:
        """Whether a snapshot meets the condition.

        A field that is not there equals nothing, differs from all but "", and is searched as "". A pattern
        that cannot be compiled matches nothing, as in containerd.
        """
        value = field_of(info, self.path)
        match self.operator:
            case "":
                return value is not None
            case "==":
                return value == self.value
            case "!=":
                return (value or "") != self.value
            case "~=":
                return _searches(self.value, value or "")


def field_of(info: Info, path: Sequence[str]) -> str | None:
    """A snapshot's field by its path; None if there is no such field."""
    match path:
        case ("name", *_):
            return info.name
        case ("parent", *_):
            return info.parent
        case ("kind", *_):
            return info.kind.value
        case ("labels", *rest):
            return info.labels.get(".".join(rest))
        case _:
            return None


def _searches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except (re.error, RecursionError, OverflowError):
        return False


Filter = Callable[[Info], bool]


def parse_filters(filters: Sequence[str]) -> list[tuple[Selector, ...]]:
    """The alternatives of a List call, each a row of conditions; an empty row always holds.

    Raises:
        BadSnapshotCall: one of them does not parse.
    """
    return [_parse(text) for text in filters]


def any_of(alternatives: Sequence[tuple[Selector, ...]]) -> Filter:
    """Whether a snapshot meets one of the alternatives; without any, all do."""

    def holds(info: Info) -> bool:
        return not alternatives or any(
            all(selector.holds(info) for selector in selectors) for selectors in alternatives
        )

    return holds


def _parse(text: str) -> tuple[Selector, ...]:
    if not text:
        return ()
    if len(text) > _LONGEST:
        raise BadSnapshotCall(f"a filter of {len(text)} characters is too long")
    scanner = _Scanner(text)
    selectors = [_selector(scanner)]
    while not scanner.at_end():
        scanner.expect(",")
        selectors.append(_selector(scanner))
    return tuple(selectors)


def _selector(scanner: "_Scanner") -> Selector:
    path = [scanner.field()]
    while scanner.next_is("."):
        scanner.expect(".")
        path.append(scanner.field())
    if scanner.at_end() or scanner.next_is(","):
        return Selector(tuple(path), "")
    operator = scanner.operator()
    return Selector(tuple(path), operator, scanner.value(alternative_quotes=operator == "~="))


class _Scanner:
    """Takes tokens off the front of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._text)

    def next_is(self, character: str) -> bool:
        """Without skipping blanks, as containerd's parser peeks."""
        return self._text.startswith(character, self._at)

    def expect(self, character: str) -> None:
        if not self.next_is(character):
            raise self._error(f"expected {character!r}")
        self._at += 1

    def field(self) -> str:
        self._skip_blanks()
        quoted = self._quoted(alternatives=False)
        return self._take(_FIELD, "a field") if quoted is None else quoted

    def operator(self) -> Operator:
        self._skip_blanks()
        match self._take(_OPERATOR, 'an operator ("==", "!=" or "~=")'):
            case "==" | "!=" | "~=" as operator:
                return operator
            case other:
                raise self._error(f"there is no operator {other!r}")

    def value(self, *, alternative_quotes: bool) -> str:
        self._skip_blanks()
        quoted = self._quoted(alternatives=alternative_quotes)
        return self._take(_VALUE, "a value") if quoted is None else quoted

    def _quoted(self, *, alternatives: bool) -> str | None:
        """What stands between quotes here; None if there is no quote."""
        if self._text[self._at : self._at + 1] not in {*'"|/'}:
            return None
        found = _QUOTED.match(self._text, self._at)
        if found is None:
            raise self._error("a quote without its end")
        if found[1] != '"' and not alternatives:
            raise self._error(f"{found[1]} quotes patterns only")
        self._at = found.end()
        text = _ESCAPE.sub(lambda escape: self._unescape(escape, found[1]), found[2])
        return text.encode(errors="surrogateescape").decode(errors="replace")

    def _unescape(self, escape: re.Match[str], quote: str) -> str:
        """One character, or one byte of one, which is kept as a surrogate until the text is whole."""
        octal, byte, short, long, letter = escape.groups()
        if octal or byte:
            code = int(octal, 8) if octal else int(byte, 16)
            if code > 0xFF:
                raise self._error(f"no byte has the value {code:#o}")
            return bytes([code]).decode(errors="surrogateescape")
        if short or long:
            code = int(short or long, 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self._error(f"no character has the number {code:#x}")
            return chr(code)
        if letter != quote and letter not in _LETTERS:
            raise self._error(f"there is no escape \\{letter}")
        return _LETTERS.get(letter, letter)

    def _take(self, token: re.Pattern[str], what: str) -> str:
        found = token.match(self._text, self._at)
        if found is None:
            raise self._error(f"expected {what}")
        self._at = found.end()
        return found[0]

    def _skip_blanks(self) -> None:
        found = _BLANK.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _error(self, what: str) -> BadSnapshotCall:
        return BadSnapshotCall(f"filter {self._text!r}, at {self._at}: {what}")
