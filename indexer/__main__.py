"""Indexes of local files: `python -m indexer build|show|verify|compile`. Needs nothing of lazyfs.

build LAYER OUT.toc         index a layer blob; windows go to OUT.windows
show OUT.toc                what it holds, as text or JSON
verify OUT.toc LAYER        read the whole layer again and compare everything
compile OUT.erofs TOC...    the merged tree of layers, lowest first, as an EROFS image; --alone: what the
                            last of them changes, as a lower directory of overlayfs
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from indexer.build import DEFAULT_SPAN_SIZE, BuiltToc, LayerBuilder
from indexer.errors import DigestMismatch, FormatError, IndexerError
from indexer.toc_codec import TocHead, decode_head, encode_toc

_PIECE = 1 << 20
_EXIT_DATA, _EXIT_NO_INPUT = 65, 66


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 65 for bad data, 66 for a missing file."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nothing here uses
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except IndexerError as error:
        print(f"indexer: {error}", file=sys.stderr)
        return _EXIT_DATA
    except OSError as error:
        print(f"indexer: {error.filename}: {error.strerror}", file=sys.stderr)
        return _EXIT_NO_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m indexer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="index a layer blob")
    build.add_argument("layer", type=Path)
    build.add_argument("toc", type=Path)
    build.add_argument("--span-size", type=int, default=DEFAULT_SPAN_SIZE, metavar="BYTES")
    build.set_defaults(run=_build)
    show = commands.add_parser("show", help="what an index holds")
    show.add_argument("toc", type=Path)
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_show)
    verify = commands.add_parser("verify", help="compare an index with its layer")
    verify.add_argument("toc", type=Path)
    verify.add_argument("layer", type=Path)
    verify.set_defaults(run=_verify)
    compile_ = commands.add_parser("compile", help="merge layers into an EROFS metadata image")
    compile_.add_argument("image", type=Path)
    compile_.add_argument("tocs", type=Path, nargs="+", metavar="TOC")
    compile_.add_argument("--alone", action="store_true", help="only what the last layer changes")
    compile_.set_defaults(run=_compile)
    return parser


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _index(layer: Path, span_size: int) -> BuiltToc:
    with LayerBuilder(layer.stat().st_size, None, span_size=span_size) as builder:
        for piece in _pieces(layer):
            builder.feed(piece)
        return builder.finish()


def _build(options: argparse.Namespace) -> None:
    gc.disable()  # what is made is kept; looking for what is not costs 2 % of the time
    built = _index(options.layer, options.span_size)
    head = encode_toc(built.toc)
    options.toc.with_suffix(".windows").write_bytes(built.windows)
    options.toc.write_bytes(head)
    print(decode_head(head).digest)


def _show(options: argparse.Namespace) -> None:
    head = decode_head(options.toc.read_bytes())
    facts = _facts(head)
    if options.json:
        import json  # noqa: PLC0415  # the other commands start sooner

        members = [_member_facts(member) for member in head.members()]
        print(json.dumps({**facts, "members": members}, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:18}{value}")
    for member in head.members():
        link = f" -> {_shown(member.link)}" if member.link else ""
        print(f"{member.kind.name.lower():10}{member.mode:05o}{member.size:>12} {_shown(member.path)}{link}")


def _facts(head: TocHead) -> dict[str, str | int]:
    header, spans = head.header, head.spans()
    return {
        "toc digest": head.digest,
        "layer digest": header.layer_digest,
        "layer size": header.layer_size,
        "diffID": header.diff_id,
        "uncompressed size": header.uncompressed_size,
        "compression": header.compression.name.lower(),
        "spans": len(spans),
        "span size": header.span_size,
        "windows size": spans.windows_size,
    }


def _member_facts(member: object) -> dict[str, object]:
    facts = dict(member._asdict())  # type: ignore[attr-defined]  # a NamedTuple
    facts["kind"] = facts["kind"].name.lower()
    facts["xattrs"] = {_text(name): value.hex() for name, value in facts["xattrs"]}
    return {name: _text(value) if isinstance(value, bytes) else value for name, value in facts.items()}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _shown(name: bytes) -> str:
    """A stranger's name, with what a terminal would obey escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in _text(name))


def _verify(options: argparse.Namespace) -> None:
    data = options.toc.read_bytes()
    head = decode_head(data)
    built = _index(options.layer, head.header.span_size)
    if built.toc.header.layer_digest != head.header.layer_digest:
        raise DigestMismatch("layer", head.header.layer_digest, built.toc.header.layer_digest)
    windows = options.toc.with_suffix(".windows").read_bytes()
    if "sha256:" + sha256(windows).hexdigest() != head.header.windows_digest:
        raise FormatError("the window file is not the one the index names")
    if built.toc != head.toc():
        raise FormatError("the index does not say what its layer holds")
    print(f"{head.digest} is the index of {head.header.layer_digest}")


def _compile(options: argparse.Namespace) -> None:
    from indexer.compile import compile_alone, compile_image  # noqa: PLC0415  # the other commands start sooner

    heads = [decode_head(path.read_bytes()) for path in options.tocs]
    *_, write = compile_alone(heads) if options.alone else [partial(compile_image, heads)]
    with options.image.open("wb") as file:
        write(file)


if __name__ == "__main__":
    sys.exit(main())
