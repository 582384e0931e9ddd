"""What the snapshotter has done, counted, and as metrics of Prometheus."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from lazyfs.image.reading.histogram import BOUNDS_S, Histogram


class Counted(NamedTuple):
    """Counts at one moment.

    Attributes:
        calls: by method, and gRPC's name of the status.
        layers: by whether they were lazy: those that containerd wanted to have pulled.
        created: by whether they stand on a lazy mount: active snapshots and views.
        daemon_failures: by question: those that the daemon did not answer as wished.
        reconnects: questions asked once more, as the daemon was away.
    """

    calls: Mapping[tuple[str, str], int]
    layers: Mapping[bool, int]
    created: Mapping[bool, int]
    daemon_failures: Mapping[str, int]
    reconnects: int


class SnapshotterCounts:
    """Counts of one process. Safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._layers = Counter({True: 0, False: 0})
        self._created = Counter({True: 0, False: 0})
        self._failures: Counter[str] = Counter()
        self._reconnects = 0
        self._durations: dict[str, Histogram] = {}

    def __repr__(self) -> str:
        return f"<SnapshotterCounts of {self._calls.total()} calls>"

    def called(self, method: str, code: str, duration_s: float) -> None:
        """A call was answered with this status after so many seconds."""
        with self._lock:
            self._calls[method, code] += 1
            durations = self._durations.setdefault(method, Histogram())
        durations.observe(duration_s)

    def layer(self, *, lazy: bool) -> None:
        """Containerd asked whether it has to pull a layer; not if it is lazy."""
        with self._lock:
            self._layers[lazy] += 1

    def created(self, *, lazy: bool) -> None:
        """An active snapshot or a view was made, on a lazy mount or on none."""
        with self._lock:
            self._created[lazy] += 1

    def daemon_failed(self, question: str) -> None:
        """The daemon did not do what it was asked."""
        with self._lock:
            self._failures[question] += 1

    def reconnected(self) -> None:
        """A question is asked once more."""
        with self._lock:
            self._reconnects += 1

    def counted(self) -> Counted:
        """What was counted so far."""
        with self._lock:
            return Counted(
                dict(self._calls),
                dict(self._layers),
                dict(self._created),
                dict(self._failures),
                self._reconnects,
            )

    def durations(self) -> dict[str, Histogram]:
        """Seconds that calls took, by method."""
        with self._lock:
            return dict(self._durations)


def snapshotter_metrics(counts: SnapshotterCounts, kinds: Mapping[tuple[str, bool], int]) -> Iterator[Metric]:
    """What is told.

    Args:
        counts: what was done.
        kinds: how many snapshots there are by kind, and by whether they are lazy.
    """
    counted = counts.counted()
    told = "Snapshots by kind; lazy ones are layers that are not here."
    snapshots = GaugeMetricFamily("lazyfs_snapshotter_snapshots", told, labels=["kind", "lazy"])
    for (kind, lazy), count in kinds.items():
        snapshots.add_metric([kind, str(lazy).lower()], count)
    yield snapshots
    told = "Calls by method and status."
    calls = CounterMetricFamily("lazyfs_snapshotter_calls", told, labels=["method", "code"])
    for names, count in counted.calls.items():
        calls.add_metric(names, count)
    yield calls
    yield _durations(counts.durations())
    layers = {_LAYERS[lazy]: count for lazy, count in counted.layers.items()}
    yield _by("layers", "Layers that containerd asked for.", "result", layers)
    created = {_BASES[lazy]: count for lazy, count in counted.created.items()}
    yield _by("created", "Active snapshots and views, by what they stand on.", "base", created)
    told = "Questions that the data daemon did not answer as wished."
    yield _by("daemon_failures", told, "question", counted.daemon_failures)
    told = "Questions that were asked once more as the data daemon was away."
    yield CounterMetricFamily("lazyfs_snapshotter_daemon_reconnects", told, value=counted.reconnects)


_LAYERS: Final = {True: "lazy", False: "unpacked"}
_BASES: Final = {True: "lazy", False: "ordinary"}


def _by(name: str, told: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"lazyfs_snapshotter_{name}", told, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _durations(durations: Mapping[str, Histogram]) -> Metric:
    told = "Seconds that calls took."
    family = HistogramMetricFamily("lazyfs_snapshotter_call_duration_seconds", told, labels=["method"])
    for method, histogram in durations.items():
        seen = histogram.distribution()
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        buckets = list(zip(bounds, map(float, seen.counts), strict=True))
        family.add_metric([method], buckets, seen.total)
    return family
