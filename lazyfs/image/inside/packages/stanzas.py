"""Files of stanzas: "Key: value" lines, more of a value on indented lines, a blank line between stanzas.

So are dpkg's databases (deb-control(5)), apk's, and the metadata of Python distributions (the core metadata
specification). Values that are no UTF-8 come with replacement characters in place of what is wrong.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO

Stanza = dict[str, str]


def parse_stanzas(data: bytes, keys: Collection[str]) -> Iterator[Stanza]:
    """The stanzas that have any of `keys`, with these alone; of a key that stands twice the first counts.

    Lines without a colon are nothing: whoever needs a key sees that it is missing.
    """
    lines: dict[str, list[str]] = {}
    last: list[str] | None = None
    for raw in BytesIO(data):
        if not raw.strip():
            if lines:
                yield _stanza(lines)
            lines, last = {}, None
        elif raw[:1] in (b" ", b"\t"):
            if last is not None:
                last.append(_text(raw))
        else:
            name, colon, value = raw.partition(b":")
            last = None
            key = _text(name)
            if colon and key in keys and key not in lines:
                last = lines[key] = [_text(value)]
    if lines:
        yield _stanza(lines)


def parse_header(data: bytes, keys: Collection[str]) -> Stanza:
    """The first stanza of a file that begins with one, such as METADATA: its body is not looked at."""
    head = data.replace(b"\r\n", b"\n").lstrip(b"\n").partition(b"\n\n")[0]
    return next(parse_stanzas(head, keys), {})


def _stanza(lines: Mapping[str, Sequence[str]]) -> Stanza:
    return {key: "\n".join(value) for key, value in lines.items()}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()
