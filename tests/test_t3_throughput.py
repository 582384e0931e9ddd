"""How fast a line is, and how much is worth asking for ahead on it."""

import pytest

from lazyfs.image.reading.throughput import AHEAD_S, Throughput

KIB, MIB = 1 << 10, 1 << 20


def _after(speed: float, *, pause_s: float = 0.0, piece: int = 256 * KIB) -> Throughput:
    """What is known after ten requests in a row, with pauses between them."""
    line, now = Throughput(), 100.0
    for _ in range(10):
        line.begun(now)
        now += piece / speed
        line.arrived(piece, now)
        line.ended(now)
        now += pause_s
    return line


@pytest.mark.parametrize("speed", [20e3, 1e6, 100e6])
@pytest.mark.parametrize("pause_s", [0.0, 60.0])
def test_the_throughput_is_that_of_busy_time(speed, pause_s):
    assert _after(speed, pause_s=pause_s).bytes_per_s == pytest.approx(speed)


def test_requests_side_by_side_add_up():
    line = Throughput()
    for _ in range(4):
        line.begun(0.0)
    for number in range(4):
        line.arrived(MIB, 1.0 + number / 100)
        line.ended(1.0 + number / 100)
    assert line.bytes_per_s == pytest.approx(4 * MIB, rel=0.05)


def test_a_line_that_slows_down_is_soon_known_to():
    line, now = Throughput(), 0.0
    for speed in [10e6] * 100 + [50e3] * 3:
        line.begun(now)
        now += 256 * KIB / speed
        line.arrived(256 * KIB, now)
        line.ended(now)
    assert line.bytes_per_s == pytest.approx(50e3, rel=0.5)


def test_nothing_is_known_before_anything_came():
    assert Throughput().worth_ahead(60) is None
    assert Throughput().bytes_per_s is None


@pytest.mark.parametrize("speed", [1e3, 50e3, 1e6, 125e6])
@pytest.mark.parametrize("deadline_s", [1.0, 60.0])
def test_no_more_is_worth_asking_for_than_a_third_of_a_deadline_carries(speed, deadline_s):
    worth = _after(speed).worth_ahead(deadline_s)
    assert 0 <= worth <= speed * deadline_s / 3


def test_a_fast_line_is_kept_busy():
    assert _after(125e6).worth_ahead(60) == pytest.approx(125e6 * AHEAD_S)
