"""One self-contained page: results, pictures, and what they were taken with."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from bench.cold.plots import Picture
from bench.cold.record import Facts, Record, Series, Start
from bench.cold.table import footnote, is_disturbed, pulled
from bench.report import number
from bench.spread import Spread

_STYLE: Final = Path(__file__).with_name("report.css")
_HEADS: Final = (
    *("", "ready s", "lowest &ndash; highest", "times", "pulled s", "done s"),
    *("MB", "&times; touched", "requests", "CPU s", "peak MB", "starts"),
)


def page(records: Sequence[Record], pictures: Sequence[Sequence[Picture]]) -> str:
    """The page of some runs, each with its pictures."""
    parts = [part for record, drawn in zip(records, pictures, strict=True) for part in _run(record, drawn)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Cold starts</title><style>{_STYLE.read_text()}</style></head>\n"
        "<body><h1>Container starts</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _run(record: Record, pictures: Sequence[Picture]) -> Iterator[str]:
    yield f"<h2>{escape(record.distance)}, caches {escape(record.caches)}</h2>"
    if record.note:
        yield f'<p class="note">{escape(record.note)}</p>'
    if any(is_disturbed(one.starts) for one in record.series if one.starts):
        yield (
            '<p class="note">Other programs used the machine during some starts, marked *. '
            "Their times say less than counts of bytes and requests.</p>"
        )
    yield "<h3>Medians</h3>"
    for facts in record.workloads:
        yield from _table(facts, record.of(facts.name))
    yield f"<pre>{escape(footnote(record))}</pre>"
    for picture in pictures:
        data = b64encode(picture.png).decode()
        caption = escape(picture.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        yield f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    yield from _circumstances(record)


def _table(facts: Facts, series: Sequence[Series]) -> Iterator[str]:
    touched = (
        f"; a start touches {facts.touched_bytes / 1e6:.1f} MB of it, uncompressed"
        if facts.touched_bytes
        else ""
    )
    command = f": <code>{escape(' '.join(facts.command))}</code>" if facts.command else ""
    yield f"<h3>{escape(facts.name)}{command}</h3>"
    yield f"<p>{facts.image_bytes / 1e6:.0f} MB of compressed layers{touched}</p>"
    yield '<div class="scroll"><table><tr>' + "".join(f"<th>{head}</th>" for head in _HEADS) + "</tr>"
    baseline = next((_middle(one, lambda start: start.ready_s) for one in series if one.starts), 0.0)
    for one in series:
        yield f"<tr><td>{escape(one.method)}</td>{_cells(one, baseline, facts.touched_bytes)}</tr>"
    yield "</table></div>"


def _cells(one: Series, baseline: float, touched_bytes: int) -> str:
    if not one.starts:
        return f'<td class="why" colspan="{len(_HEADS) - 1}">not measured: {escape(one.failure)}</td>'
    ready = Spread.of([start.ready_s for start in one.starts])
    completed = [start.completed_s for start in one.starts if start.completed_s is not None]
    cells = (
        f"<b>{number(ready.median)}</b>{' *' if is_disturbed(one.starts) else ''}",
        f"{number(ready.low)} &ndash; {number(ready.high)}",
        f"{ready.median / baseline:.2f}" if baseline else "",
        pulled(_middle(one, lambda start: start.pulled_s)),
        number(Spread.of(completed).median) if completed else "&ndash;",
        f"{_middle(one, lambda start: start.down) / 1e6:.1f}",
        f"{_middle(one, lambda start: start.down) / touched_bytes:.2f}" if touched_bytes else "&ndash;",
        f"{_middle(one, lambda start: start.requests):.0f}",
        number(_middle(one, lambda start: start.cpu_s)),
        f"{_middle(one, lambda start: start.peak_bytes) / 1e6:.0f}",
        str(len(one.starts)),
    )
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _middle(one: Series, value: Callable[[Start], float]) -> float:
    return Spread.of([value(start) for start in one.starts]).median


def _circumstances(record: Record) -> Iterator[str]:
    facts = {
        "date": record.date,
        "commit": record.commit or "none",
        "machine": ", ".join(f"{key} {value}" for key, value in record.machine.items()),
        "command": " ".join(record.command),
        **record.methods,
    }
    yield "<h3>Taken with</h3><dl>"
    yield from (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    yield "</dl>"
