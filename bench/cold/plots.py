"""Pictures of results: every start as a dot, medians marked, axes from zero."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.cold.record import Facts, Record, Series, Start
from bench.spread import Spread

_WIDTH: Final = 9.0
_LINE: Final = 0.3
_FRAME: Final = 0.95
_DOTS_PER_INCH: Final = 140
# Of Okabe and Ito: most people can tell them apart. Full pulls are grey, lazyfs is blue, green.
_COLOURS: Final = {
    "full": ("#999999", "#555555", "#bbbbbb"),
    "lazyfs": ("#56B4E9", "#0072B2", "#009E73", "#332288", "#44AA99", "#117733", "#88CCEE", "#004488"),
    "": ("#E69F00", "#D55E00", "#CC79A7", "#882255", "#999933"),
}
_INK: Final = "#222222"


class Picture(NamedTuple):
    """One picture.

    Attributes:
        name: "ready".
        caption: what it shows, in a sentence or two.
        png: its bytes.
    """

    name: str
    caption: str
    png: bytes


def pictures(record: Record) -> list[Picture]:
    """All pictures of a run; those of which there is nothing to show are left out."""
    if not any(one.starts for one in record.series):
        return []
    colours = _colours(list(record.methods))
    return [
        Picture(
            "ready",
            "Time from asking for the image to a ready container. Every dot is one start, the bar their "
            "median; its light part is the time until the method said that the container can be started.",
            _drawn(record, colours, _ready, "seconds"),
        ),
        Picture(
            "bytes",
            "What the registry sent until the container was done, or ready if it goes on. The dashed line is "
            "the compressed image.",
            _drawn(record, colours, _moved, "MB"),
        ),
        Picture(
            "course",
            "What had arrived when, in the start whose time is the median: the dot is where the container "
            "was ready. Where a line is flat, the link was idle. Full pulls go on outside of the frame.",
            _drawn(record, colours, _course, "seconds", lines=9),
        ),
    ]


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, by its family."""
    left = {family: cycle(colours) for family, colours in _COLOURS.items()}
    return {method: next(left.get(method.partition("-")[0], left[""])) for method in methods}


_Draw = Callable[[Axes, Facts, Sequence[Series], Mapping[str, str]], None]


def _drawn(
    record: Record, colours: Mapping[str, str], draw: _Draw, unit: str, lines: int | None = None
) -> bytes:
    """One panel for each workload, one below the other."""
    shown = [(facts, [one for one in record.of(facts.name) if one.starts]) for facts in record.workloads]
    shown = [(facts, series) for facts, series in shown if series]
    heights = [_FRAME + _LINE * (lines or len(series)) for _, series in shown]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (facts, series) in zip(panels, shown, strict=True):
        draw(axes, facts, series, colours)
        axes.set_title(facts.name, loc="left", fontsize=11, fontweight="bold", color=_INK)
        axes.set_xlabel(unit, fontsize=9, color=_INK)
        axes.tick_params(labelsize=9, colors=_INK)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    return file.getvalue()


def _bars(
    axes: Axes,
    series: Sequence[Series],
    colours: Mapping[str, str],
    value: Callable[[Start], float],
    text: str,
) -> None:
    """A bar to each median, a dot for each start, the median in figures."""
    highest = max(value(start) for one in series for start in one.starts)
    for row, one in enumerate(series):
        values = [value(start) for start in one.starts]
        middle = Spread.of(values).median
        axes.barh(row, middle, height=0.62, color=colours[one.method], alpha=0.75, linewidth=0)
        axes.plot([middle, middle], [row - 0.38, row + 0.38], color=_INK, linewidth=1.6)
        axes.scatter(
            values,
            list(_spread_out(row, len(values))),
            s=20,
            color="white",
            edgecolors=_INK,
            linewidths=0.9,
            zorder=3,
        )
        axes.annotate(
            text.format(middle), (max(values), row), xytext=(7, 0), textcoords="offset points",
            va="center", fontsize=9, color=_INK,
        )  # fmt: skip
    axes.set_yticks(range(len(series)), [one.method for one in series])
    axes.set_ylim(len(series) - 0.4, -0.6)
    axes.set_xlim(0, highest * 1.12 or 1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _spread_out(row: float, count: int) -> Iterator[float]:
    """Heights within a bar, so that equal samples do not hide one another."""
    for index in range(count):
        yield row + (0.0 if count == 1 else 0.36 * (index / (count - 1) - 0.5))


def _ready(axes: Axes, _facts: Facts, series: Sequence[Series], colours: Mapping[str, str]) -> None:
    _bars(axes, series, colours, lambda start: start.ready_s, "{:.2f}")
    for row, one in enumerate(series):
        pulled = Spread.of([start.pulled_s for start in one.starts]).median
        axes.barh(row, pulled, height=0.62, color="white", alpha=0.55, linewidth=0)


def _moved(axes: Axes, facts: Facts, series: Sequence[Series], colours: Mapping[str, str]) -> None:
    _bars(axes, series, colours, lambda start: start.down / 1e6, "{:.1f}")
    image = facts.image_bytes / 1e6
    axes.axvline(image, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, max(axes.get_xlim()[1], image * 1.12))


def _course(axes: Axes, _facts: Facts, series: Sequence[Series], colours: Mapping[str, str]) -> None:
    for one in series:
        start = _typical(one.starts)
        times, moved = course(start)
        axes.plot(times, moved, color=colours[one.method], linewidth=1.8, label=one.method)
        axes.scatter(
            [start.ready_s],
            [moved[-1]],
            s=26,
            color=colours[one.method],
            edgecolors=_INK,
            linewidths=0.8,
            zorder=3,
        )
    near = [one for one in series if not one.method.startswith("full")] or series
    axes.set_ylabel("MB", fontsize=9, color=_INK)
    axes.set_xlim(0, 1.08 * max(_typical(one.starts).ready_s for one in near))
    axes.set_ylim(0, 1.1 * max(course(_typical(one.starts))[1][-1] for one in near) or 1)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _typical(starts: Sequence[Start]) -> Start:
    """The start in the middle."""
    return sorted(starts, key=lambda start: start.ready_s)[(len(starts) - 1) // 2]


def course(start: Start) -> tuple[list[float], list[float]]:
    """Seconds and the MB that had arrived then; each answer is taken to have come evenly.

    Returns:
        Two lists of equal length; both ascend.
    """
    end_of_all = start.completed_s or start.ready_s
    changes: list[tuple[float, float]] = []
    for exchange in start.exchanges:
        begin = min(max(exchange.start_s, 0.0), end_of_all)
        end = min(max(exchange.end_s or begin, begin + 1e-4), end_of_all + 1e-4)
        rate = exchange.down / 1e6 / (end - begin)
        changes += [(begin, rate), (end, -rate)]
    times, moved, rate = [0.0], [0.0], 0.0
    for when, change in sorted(changes):
        moved.append(max(moved[-1] + rate * (when - times[-1]), moved[-1]))
        times.append(when)
        rate += change
    return [*times, max(end_of_all, times[-1])], [*moved, moved[-1]]
