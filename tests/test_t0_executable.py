"""What programs and libraries need, as their files say: compared with readelf, and of any bytes."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import FormatError
from indexer.executable import Needs, needs_of
from tests.support.elf import elf

PLACES = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
PROGRAM = elf([b"liba.so.1", b"libc.so.6"], interpreter=b"/lib/ld.so", runpath=b"$ORIGIN/../lib:/opt/lib")


def parsed(data: bytes) -> tuple[Needs, list[range]]:
    """What a file needs, and which of its bytes were asked for."""
    parser = needs_of(len(data))
    asked = [next(parser)]
    while True:
        assert 0 <= asked[-1].start <= asked[-1].stop <= len(data)
        try:
            asked.append(parser.send(data[asked[-1].start : asked[-1].stop]))
        except StopIteration as end:
            return end.value, asked


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def readelf(path: Path) -> Needs:
    """The same by binutils."""
    command, plain = ["readelf", "-Wld", path], {**os.environ, "LC_ALL": "C"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout
    programs = re.findall(r"program interpreter: (.*)\]", told)
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", told)
    search = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", told)
    found = search[0].split(":") if search else []
    return Needs(*(tuple(text.encode() for text in texts) for texts in (programs, libraries, found)))


def test_it_agrees_with_readelf_on_this_machines_programs_and_libraries():
    files = {path.resolve() for place in PLACES for path in Path(place).glob("*") if path.is_file()}
    elves = sorted(filter(is_elf, files))
    chosen = elves[:: max(len(elves) // 60, 1)]
    assert len(chosen) >= 50
    assert any(readelf(path).libraries for path in chosen)
    for path in chosen:
        assert parsed(path.read_bytes())[0] == readelf(path), path


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", "<>")
def test_both_classes_and_byte_orders_are_read(bits, order):
    data = elf(
        [b"libz.so", b"./own.so"],
        interpreter=b"/lib/ld",
        runpath=b"/a::/b",
        bits=bits,
        order=order,
        padding=b"-",
    )
    assert parsed(data)[0] == Needs((b"/lib/ld",), (b"libz.so", b"./own.so"), (b"/a", b"/b"))


def test_a_runpath_makes_an_rpath_void():
    assert parsed(elf([b"x"], rpath=b"/old"))[0].search == (b"/old",)
    assert parsed(elf([b"x"], rpath=b"/old", runpath=b"/new"))[0].search == (b"/new",)


def test_little_is_asked_of_a_large_file():
    data = elf([b"libm.so"] * 20, interpreter=b"/lib/ld.so", padding=bytes(4 << 20))
    _, asked = parsed(data)
    assert sum(min(len(place), 4096) for place in asked) < 100_000
    assert len({place.start >> 16 for place in asked}) == 2  # its two ends


@pytest.mark.parametrize(
    ("line", "programs"),
    [
        (b"#!/bin/sh\necho", (b"/bin/sh",)),
        (b"#! /usr/bin/perl -w\n", (b"/usr/bin/perl",)),
        (b"#!/usr/bin/env python3\n", (b"/usr/bin/env", b"python3")),
        (b"#!/usr/bin/env -S A=1 node --flag\n", (b"/usr/bin/env", b"node")),
        (b"#!/usr/bin/env\n", (b"/usr/bin/env",)),
        (b"#!/bin/sh", (b"/bin/sh",)),
        (b"#!\n", ()),
        (b"#!" + b"x" * 5000, (b"x" * 254,)),
    ],
)
def test_scripts_name_their_interpreter(line, programs):
    assert parsed(line) == (Needs(programs=programs), [range(min(len(line), 4096))])


@pytest.mark.parametrize("data", [b"", b"#", b"text", b"\x7fEL", b"PK\3\4" * 2000])
def test_what_is_no_program_needs_nothing(data):
    assert parsed(data)[0] == Needs()


@pytest.mark.parametrize("size", [*range(4, 64), 100, 200, len(PROGRAM) - 1])
def test_what_is_cut_short_is_told(size):
    with pytest.raises(FormatError):
        parsed(PROGRAM[:size])


def test_more_libraries_than_anybody_needs_are_refused():
    with pytest.raises(FormatError, match="257 libraries"):
        parsed(elf([b"x"] * 257))


@given(st.lists(st.tuples(st.integers(0, len(PROGRAM) - 1), st.integers(0, 255)), max_size=12))
def test_whatever_its_bytes_only_what_it_has_is_asked_for(changes):
    data = bytearray(PROGRAM)
    for place, value in changes:
        data[place] = value
    try:
        needs, asked = parsed(bytes(data))
    except FormatError:
        return
    assert len(needs.libraries) <= 256
    assert len(asked) < 600
