"""Cold starts, without any: workload files, what a relay reads along, statistics, tables, comparisons."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cold.bundle import user_of
from bench.cold.compare import render_comparison
from bench.cold.html import page
from bench.cold.plots import course, pictures
from bench.cold.record import BadRecord, Facts, Record, Series, Start, new_record
from bench.cold.site import BadDistance, Distance
from bench.cold.statistics import bootstrap_ratio
from bench.cold.table import render
from bench.cold.tap import Exchange, Reading
from bench.cold.watching import Use
from bench.cold.workload import BUILT_IN, BadWorkload, Exec, Exit, Http, Line, Tcp, Workload, load

times = st.floats(min_value=0.01, max_value=1000)

# Workloads

WEB = {
    "name": "web",
    "image": "docker://registry.example/web:1",
    "ready": {"http": "http://127.0.0.1:8080/up?x=1"},
}


@pytest.mark.parametrize(
    ("ready", "meant"),
    [
        ({"line": "1"}, Line("1")),
        ({"exit": 3}, Exit(3)),
        ({"http": "http://localhost"}, Http("localhost", 80, "/")),
        ({"http": "http://127.0.0.1:8080/up?x=1"}, Http("127.0.0.1", 8080, "/up?x=1")),
        ({"tcp": "127.0.0.1:6379"}, Tcp("127.0.0.1", 6379)),
        ({"tcp": "::1:9", "send": "PING\r\n", "expect": "PONG"}, Tcp("::1", 9, b"PING\r\n", b"PONG")),
        ({"exec": ["pg_isready", "-q"]}, Exec(("pg_isready", "-q"))),
    ],
)
def test_a_workload_says_when_it_is_ready(ready, meant):
    assert Workload.of({**WEB, "ready": ready}).ready == meant


def test_only_what_ends_by_itself_is_waited_for():
    kinds = {"line": "1", "exit": 0, "http": "http://h/", "tcp": "h:1", "exec": ["true"]}
    ends = {kind: Workload.of({**WEB, "ready": {kind: value}}).ends for kind, value in kinds.items()}
    assert ends == {"line": True, "exit": True, "http": False, "tcp": False, "exec": False}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Web"}, "small letters"),
        ({"name": "../web"}, "small letters"),
        ({"recipe": "nginx"}, "either"),
        ({"image": 7}, "image is to be a text"),
        ({"ready": {}}, "one of line"),
        ({"ready": {"line": "1", "exit": 0}}, "one of line"),
        ({"ready": {"line": "1", "send": "x"}}, "unknown: send"),
        ({"ready": {"http": "https://h/"}}, "not an http:// URL"),
        ({"ready": {"http": "http://h:99999/"}}, "not an http:// URL"),
        ({"ready": {"tcp": "localhost"}}, "not HOST:PORT"),
        ({"ready": {"tcp": "h:99999"}}, "not HOST:PORT"),
        ({"ready": {"exit": True}}, "exit is to be a number"),
        ({"command": "web --port 80"}, "command is to be a list of texts"),
        ({"environment": {"A": 1}}, "environment is to be a table of texts"),
        ({"timout_s": 3}, "unknown: timout_s"),
    ],
)
def test_a_workload_that_says_something_else_is_refused(change, complaint):
    with pytest.raises(BadWorkload, match=complaint):
        Workload.of({**WEB, **change})


def test_the_built_in_workloads_are_such_a_file():
    workloads = load(BUILT_IN)
    assert [w.name for w in workloads] == [
        "python",
        "pysci",
        "torch",
        "nginx",
        "postgres",
        "redis",
        "node",
        "java",
        "tar",
    ]
    assert {(BUILT_IN.parent / "recipes" / w.recipe / "Containerfile").is_file() for w in workloads} == {True}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a list of"),
        ("[workload]", "a list of"),
        ("x = 1", "a list of"),
        ("[[workload", "Expected"),
        ('[[workload]]\nname = "a"\nimage = "i"\nready = {exit = 0}\n' * 2, "more than one workload a"),
    ],
)
def test_a_file_that_is_none_is_refused(text, complaint, tmp_path):
    file = tmp_path / "workloads.toml"
    file.write_text(text)
    with pytest.raises(BadWorkload, match=complaint):
        load(file)


@pytest.mark.parametrize(
    ("name", "of"), [("100mbit-20ms", (100, 0.02)), ("1gbit-1ms", (1000, 0.001)), ("loopback", (0, 0))]
)
def test_a_distance_has_a_name(name, of):
    assert Distance.of(name) == of
    assert Distance(*of).name == name


@pytest.mark.parametrize(
    "name", ["", "far", "100-20", "mbit-ms", "0mbit-1ms", "-1mbit-1ms", "nanmbit-1ms", "1mbit-61000ms"]
)
def test_another_name_is_none_of_a_distance(name):
    with pytest.raises(BadDistance):
        Distance.of(name)


def test_users_are_those_of_the_image(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0::/:\nweb:x:33:34::/:\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\nstaff:x:50:\n")
    asked = ["", "web", "33", "web:staff", "web:7", "1000", "1000:staff"]
    assert [user_of(user, tmp_path) for user in asked] == [
        (0, 0), (33, 34), (33, 34), (33, 50), (33, 7), (1000, 0), (1000, 50),
    ]  # fmt: skip
    with pytest.raises(KeyError):
        user_of("nobody", tmp_path)


# The relay

SAID = (
    (True, b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n"),
    (False, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    (True, b"GET /v2/a/blobs/sha256:0 HTTP/1.1\r\nRANGE: bytes=0-9\r\n\r\n"),
    (False, b"HTTP/1.1 206 Partial Content\r\n\r\n0123456789"),
    (True, b"HEAD /v2/a/manifests/b HTTP/1.1\r\n\r\n"),
)
MEANT = [
    ("GET", "/v2/", "", 200, len(SAID[1][1])),
    ("GET", "/v2/a/blobs/sha256:0", "bytes=0-9", 206, len(SAID[3][1])),
    ("HEAD", "/v2/a/manifests/b", "", 0, 0),
]


@given(st.data())
def test_exchanges_are_told_however_their_bytes_are_cut(data):
    reading = Reading(lambda: 1.0)
    for is_up, said in SAID:
        hear = reading.up if is_up else reading.down
        cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=4)))
        for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
            if start < end:
                hear(said[start:end])
    told = reading.take()
    assert [(e.method, e.target, e.range, e.status, e.down) for e in told] == MEANT
    assert [e.end_s for e in told] == [1.0, 1.0, None]


def test_bytes_of_an_answer_that_goes_on_are_told_once():
    reading = Reading(iter(range(10)).__next__)
    reading.up(SAID[2][1])
    reading.down(SAID[3][1][:20])
    assert [e.down for e in reading.take()] == [20]
    assert reading.take() == []
    reading.down(SAID[3][1][20:])
    (rest,) = reading.take()
    assert (rest.start_s, rest.end_s, rest.down) == (0, 2, len(SAID[3][1]) - 20)


# Statistics


@given(st.lists(times, min_size=3, max_size=8))
def test_nothing_differs_from_itself(values):
    change = bootstrap_ratio(values, values, rounds=200)
    assert change.ratio == 1
    assert change.interval.low <= 1 <= change.interval.high
    assert change.verdict.startswith("no difference")


@given(st.lists(times, min_size=3, max_size=6), st.integers(3, 6), st.floats(1.01, 50))
def test_what_is_always_slower_is_slower(values, count, times_slower):
    slower = [max(values) * times_slower] * count
    assert bootstrap_ratio(values, slower, rounds=200).verdict == "slower"
    assert bootstrap_ratio(slower, values, rounds=200).verdict == "faster"


@given(st.lists(times, min_size=3, max_size=6), st.lists(times, min_size=3, max_size=6))
def test_an_interval_holds_the_ratio_and_is_the_same_each_time(first, second):
    change = bootstrap_ratio(first, second, rounds=400)
    assert change == bootstrap_ratio(first, second, rounds=400)
    assert min(second) / max(first) <= change.interval.low <= change.interval.high <= max(second) / min(first)


def test_two_samples_say_nothing_of_their_spread():
    change = bootstrap_ratio([1.0, 1.0], [3.0, 3.0, 3.0])
    assert (change.ratio, change.interval) == (3, None)
    assert "too few" in change.verdict


# Records, and what is made of them


def start(ready_s, **changes):
    exchanges = [
        Exchange(0.0, 0.5 * ready_s, "GET", "/v2/a/manifests/b", "", 200, 1_000_000),
        Exchange(0.25 * ready_s, ready_s, "GET", "/v2/a/blobs/c", "bytes=0-1", 206, 3_000_000),
    ]
    values = {
        "pulled_s": ready_s / 2, "ready_s": ready_s, "completed_s": ready_s + 1,
        "down": 4_000_000, "requests": 2,
        "processes": [Use("d", 0.5, 7_000_000), Use("c", 0.25, 1_000_000)], "others_share": 0.0,
        "exchanges": exchanges,
    }  # fmt: skip
    return Start(**{**values, **changes})


def record(full=(10.0, 11.0, 12.0), lazy=(1.0, 1.1, 0.9), **changes):
    made = new_record(
        distance="100mbit-20ms", caches="cold", command=["bench", "cold"], note="<quiet>",
        methods={"full-x": "pulls", "lazyfs-y": "does not", "soci": "<peer>"},
        workloads=[Facts("python", "docker://h/p", ["python3", "-c", "print(1 < 2)"], 81_000_000, 4_000_000)],
    )  # fmt: skip
    for series, seconds in zip(made.series, (full, lazy, ()), strict=True):
        series.starts += [start(s) for s in seconds]
    made.series[-1].failure = "not <installed>"
    return replace(made, **changes)


def test_a_record_survives_its_json():
    made = record()
    assert Record.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "x", "version": 1}', record().to_json().replace('"ready_s"', '"r"')],
)
def test_what_is_no_record_is_refused(text):
    with pytest.raises(BadRecord):
        Record.from_json(text)


def test_the_table_has_medians_spreads_and_reasons():
    lines = render(record()).splitlines()
    row = next(line.split() for line in lines if "lazyfs-y" in line)
    assert " ".join(row) == "lazyfs-y 1.00 0.900 - 1.10 0.09 x 0.500 2.00 4.0 1.00 2 0.750 8"
    assert next(line for line in lines if "soci" in line).strip() == "soci      not measured: not <installed>"
    assert "python (81 MB of layers, 4.0 MB touched)" in lines


def test_a_container_that_goes_on_is_never_done_and_a_busy_machine_is_marked():
    made = record()
    made.series[0].starts[:] = [start(1.0, completed_s=None, others_share=0.9)]
    row = next(line.split() for line in render(made).splitlines() if "full-x" in line)
    assert (row[1], row[8]) == ("1.00*", "-")


def test_the_page_stands_alone_and_takes_nothing_for_markup():
    made = record()
    told = page([made], [pictures(made)])
    assert told.count("data:image/png;base64,iVBOR") == 3
    assert "http://" not in told
    assert "https://" not in told
    for text in ("print(1 &lt; 2)", "not &lt;installed&gt;", "&lt;quiet&gt;", "&lt;peer&gt;"):
        assert text in told


def test_a_run_without_starts_has_no_pictures():
    assert pictures(record(full=(), lazy=())) == []


@given(st.lists(st.tuples(st.floats(-1, 9), st.floats(0, 9), st.integers(0, 10**9)), max_size=9), times)
def test_a_course_ascends_to_all_that_came(exchanges, ready_s):
    shown = [
        Exchange(begin, begin + lasting, "GET", "/", "", 200, down) for begin, lasting, down in exchanges
    ]
    when, moved = course(start(ready_s, completed_s=None, exchanges=shown))
    assert len(when) == len(moved)
    assert when == sorted(when)
    assert moved == sorted(moved)
    assert moved[-1] == pytest.approx(sum(down for *_, down in exchanges) / 1e6, rel=1e-6, abs=1e-6)


def test_a_comparison_says_what_is_shown_and_what_is_not():
    told = render_comparison(record(), record(lazy=(0.5, 0.55, 0.45)))
    (full,) = [line for line in told.splitlines() if "full-x" in line]
    (lazy,) = [line for line in told.splitlines() if "lazyfs-y" in line]
    assert "B / A 1.00" in full
    assert "no difference shown" in full
    assert "B / A 0.50" in lazy
    assert "faster" in lazy
    assert "Attention" not in told


def test_a_comparison_warns_of_what_makes_it_doubtful():
    other = record(distance="1gbit-1ms", machine={"cpu": "another"}, workloads=[Facts("python", "", [], 1)])
    told = render_comparison(record(), other)
    assert "the machines differ: cores, cpu, kernel, memory_bytes, python" in told
    assert "100mbit-20ms, cold is compared with 1gbit-1ms, cold" in told
    assert "the image of python is another one" in told


def test_runs_with_nothing_in_common_are_not_compared():
    other = replace(
        record(), workloads=[Facts("torch", "", [], 1)], series=[Series("torch", "full-x", [start(1.0)])]
    )
    assert "no workload and method in common" in render_comparison(record(), other)
