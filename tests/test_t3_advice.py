"""What is advised about what readers wait for."""

from typing import Any

import pytest

from lazyfs.image.advice import advice


def told(cause: str = "", index: str = "lazyfs", boot: Any = None, **changes: Any) -> dict[str, Any]:
    """What explain tells of an image whose readers waited for one thing, twice; not at all for ""."""
    read = {"wait_s": 0.2, "cause": cause, "came": True}
    return {
        "image": "app:1",
        "layers": [{"index": index, "toc": "sha256:"}],
        "boot": {"state": boot, "why": ""} if boot else None,
        "slowest": [read, read] if cause else [],
        **changes,
    }


IDLE = 'background = "idle" in the configuration brings the rest while nobody waits'


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (told(), []),
        (told("network", boot="none"), ["lazyfs optimize --push app:1 COMMAND", IDLE]),
        (told("network", boot="done"), ["lacks what was waited for: lazyfs optimize --push app:1", IDLE]),
        (told("network", boot="failed"), ["lazyfs optimize --push --replace app:1 COMMAND", IDLE]),
        (told("network", boot="coming"), [IDLE]),
        (told("network"), ["boot_pack = true"]),
        (told("network", index="soci", boot="none"), ["lazyfs index --push and optimize --push"]),
        (told("queueing"), ["max_connections"]),
        (told("decompress"), ["processors are busy"]),
        (told("decompress", index="soci"), ["lazyfs index --push app:1"]),
        (told("pack", boot="done"), ["optimize --push --replace app:1 COMMAND"]),
        (told(why_not="no index", layers=[{"index": None, "toc": ""}]), ["lazyfs index --push app:1"]),
        (told(why_not="no answer", layers=[]), []),
    ],
)
def test_advice_is_about_what_was_waited_for(facts, said):
    lines = advice(facts)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_short_waits_are_no_matter_and_the_longest_cause_counts():
    short = [{"wait_s": 0.01, "cause": "network", "came": True}] * 30
    assert advice(told(slowest=short)) == []
    queued = {"wait_s": 1.0, "cause": "queueing", "came": True}
    (line,) = advice(told("network", slowest=[queued, *short]))
    assert "max_connections" in line


def test_reads_in_vain_are_named_first():
    vain = {"wait_s": 60.0, "cause": "network", "came": False}
    assert "answered with errors" in advice(told(slowest=[vain], boot="none"))[0]
