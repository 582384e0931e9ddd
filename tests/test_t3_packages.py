"""packages: what databases list, against the tools that own them; and databases that nobody should trust."""

import json
import sqlite3
import subprocess
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FormatError, IndexerError, LimitExceeded
from lazyfs import api
from lazyfs.image.inside.packages import apk, dpkg, node, python, rpm, rpm_header
from lazyfs.image.inside.packages.find import Inventory, Problem, find_packages
from lazyfs.image.inside.packages.package import Distribution, Package, parse_os_release
from tests.support.memory_images import bytes_read, memory_image
from tests.support.rpms import database, header, make_database
from tests.support.tars import file, symlink, tar, whiteout

PACKAGES = "CREATE TABLE Packages(hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL);"
DEBIAN = Distribution("debian", "12", "Debian GNU/Linux 12 (bookworm)")


async def found(*members: bytes) -> Inventory:
    return await find_packages(memory_image(tar(*members)))


def names(inventory: Inventory) -> list[tuple[str, str, str]]:
    return [(package.kind, package.name, package.version) for package in inventory.packages]


# dpkg


@pytest.mark.parametrize("name", ["base", "nginx"])
def test_dpkg_query_lists_the_same(name, lab_image, unpacked, tmp_path):
    shown = (
        "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n"
    )
    listed = subprocess.run(
        ["dpkg-query", "--admindir", unpacked(name) / "var/lib/dpkg", "-W", "-f", shown],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    expected = sorted(line[1:] for line in lines if line[0] == "installed")
    with api.open_image(f"oci:{lab_image(name)}:latest", cache_dir=tmp_path / "cache") as image:
        inventory = image.packages()
    assert expected == [
        [p.name, p.version, p.architecture, p.source, p.source_version]
        for p in inventory.packages
        if p.kind == "deb"
    ]
    assert inventory.distribution == DEBIAN
    assert inventory.problems == ()


def test_only_what_is_there_is_installed():
    states = ["installed", "unpacked", "half-configured", "triggers-pending"]
    states += ["config-files", "not-installed", "half-installed"]
    status = "\n\n".join(f"Package: {s}\nVersion: 1\nStatus: install ok {s}" for s in states)
    assert [p.name for p in dpkg.parse_status(status.encode(), b"status")] == states[:4]


async def test_parts_of_images_without_dpkg_are_read_and_their_checksums_are_not():
    inventory = await found(
        file(b"var/lib/dpkg/status.d/base", b"Package: base\nVersion: 12\nArchitecture: amd64\n"),
        file(b"var/lib/dpkg/status.d/base.md5sums", b"0123  etc/x: y\n"),
        file(b"usr/lib/os-release", b"ID=debian\nVERSION_ID='12'\n"),
    )
    assert names(inventory) == [("deb", "base", "12")]
    assert inventory.packages[0].where == b"var/lib/dpkg/status.d/base"
    assert inventory.distribution == Distribution("debian", "12")


# apk

INSTALLED = b"""C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
L:MIT
o:musl
F:lib
R:ld-musl-x86_64.so.1

P:ssl_client
V:1.36.1-r29
A:x86_64
L:GPL-2.0-only
o:busybox
"""


async def test_apk_lists_name_version_origin_and_licence():
    inventory = await found(file(b"lib/apk/db/installed", INSTALLED))
    assert inventory.packages == (
        Package("apk", "musl", "1.2.5-r0", b"lib/apk/db/installed", "x86_64", "musl", "", "MIT"),
        Package(
            *("apk", "ssl_client", "1.36.1-r29", b"lib/apk/db/installed"),
            *("x86_64", "busybox", "", "GPL-2.0-only"),
        ),
    )


async def test_a_database_under_two_names_counts_once():
    moved = file(b"usr/lib/apk/db/installed", INSTALLED)
    assert len((await found(moved, symlink(b"lib", b"usr/lib"))).packages) == 2


# RPM


async def test_rpm_lists_the_same(tmp_path):
    _, _, listed = made = make_database(tmp_path / "db")
    inventory = await found(
        file(b"usr/lib/sysimage/rpm/rpmdb.sqlite", made.sqlite),
        symlink(b"var/lib/rpm", b"../../usr/lib/sysimage/rpm"),
    )
    assert [f"{p.name} {p.version} {p.architecture} {p.licence}" for p in inventory.packages] == listed
    assert {(p.source, p.source_version) for p in inventory.packages} == {("one", "1.2-4.lab")}
    assert len(listed) == 2
    assert inventory.problems == ()


async def test_what_still_stands_in_the_log_counts(tmp_path):
    path = tmp_path / "rpmdb.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(PACKAGES)
        connection.execute("INSERT INTO Packages(blob) VALUES (?)", (header({1000: "n", 1001: "1"}),))
        connection.commit()
        members = [
            file(b"var/lib/rpm/" + name, (tmp_path / name.decode()).read_bytes())
            for name in (b"rpmdb.sqlite", b"rpmdb.sqlite-wal")
        ]
    assert names(await found(*members)) == [("rpm", "n", "1")]


async def test_keys_are_no_packages_and_epochs_are_shown(tmp_path):
    blobs = [header({1000: "gpg-pubkey", 1001: "1"}), header({1000: "n", 1001: "1", 1002: "2", 1003: 0})]
    data = database(tmp_path / "x", PACKAGES, blobs)
    assert names(await found(file(b"var/lib/rpm/rpmdb.sqlite", data))) == [("rpm", "n", "0:1-2")]


def test_a_header_may_have_a_long_licence_and_one_that_is_too_long_does_no_harm():
    expression = " AND ".join(["(GPL-2.0-only OR BSD-3-Clause)"] * 40)
    for licence, told in ((expression, expression), (expression * 4, "")):
        package = rpm_header.parse_header(header({1000: "n", 1001: "1", 1014: licence}), b"")
        assert package is not None
        assert package.licence == told


def test_what_a_header_does_not_say_is_nothing_and_its_module_is_told():
    said = {1000: "n", 1001: "1", 1002: "2", 1014: "(none)", 1044: "(none)", 5096: "nodejs:18:8090:a75119d5"}
    assert rpm_header.parse_header(header(said), b"") == Package(
        "rpm", "n", "1-2", b"", module="nodejs:18:8090:a75119d5"
    )


HOSTILE = {
    "no database": "",
    "no packages": "CREATE TABLE Other(blob);",
    "a view": "CREATE TABLE T(blob); CREATE VIEW Packages AS SELECT 1 AS hnum, blob FROM T;",
    "a view that runs on": (
        "CREATE VIEW Packages AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
        " SELECT n AS hnum, x'00' AS blob FROM r;"
    ),
    "a view that makes large values": "CREATE VIEW Packages AS SELECT 1 hnum, zeroblob(1000000000) AS blob;",
    "text": f"{PACKAGES} INSERT INTO Packages VALUES (1, 'text');",
    "a long schema": f"{PACKAGES} CREATE TABLE x(y /* {'y' * 20_000} */);",
    "nothing in a header": f"{PACKAGES} INSERT INTO Packages VALUES (1, x'');",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_database_of_another_make_is_a_problem_and_no_more(name, tmp_path):
    data = database(tmp_path / "x", HOSTILE[name])
    inventory = await found(
        file(b"var/lib/rpm/rpmdb.sqlite", data), file(b"x/p.dist-info/METADATA", b"Name: p\nVersion: 1\n")
    )
    assert names(inventory) == [("pypi", "p", "1")]
    assert [problem.path for problem in inventory.problems] == [b"var/lib/rpm/rpmdb.sqlite"]


def test_a_database_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(rpm, "_MAX_STEPS", 0)
    monkeypatch.setattr(rpm, "_STEPS_AT_ONCE", 10)
    data = database(tmp_path / "x", PACKAGES, [header({1000: "n", 1001: "1"})] * 50)
    with pytest.raises(LimitExceeded, match="too long"):
        rpm.read_sqlite(data, b"", b"")


def test_damage_that_sqlite_quotes_in_no_utf_8_is_a_problem_like_any_other(tmp_path):
    data = database(tmp_path / "x", PACKAGES, [header({1000: "n", 1001: "1"})])
    assert data.count(b"CREATE TABLE") == 1
    with pytest.raises(FormatError, match="damaged"):
        rpm.read_sqlite(data.replace(b"CREATE TABLE", b"CREATE T\xc5BLE"), b"", b"")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_database_gives_packages_or_our_own_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("rpm") / "x"
    blobs = [header({1000: f"n{n}", 1001: "1", 1014: "MIT" * 50}) for n in range(40)]
    raw = bytearray(database(path, PACKAGES, blobs))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)):
        raw[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw), len(raw) // 2, 100]))
    with suppress(FormatError):
        rpm.read_sqlite(bytes(raw[:cut]), b"", b"")


@settings(max_examples=300)
@given(
    st.one_of(st.binary(max_size=200), st.builds(header, st.dictionaries(st.integers(999, 1045), st.text())))
)
def test_a_damaged_header_gives_a_package_or_our_own_errors(blob):
    with suppress(FormatError):
        rpm_header.parse_header(blob, b"")


# Python


async def test_python_distributions_are_found_wherever_they_lie():
    inventory = await found(
        file(
            b"usr/lib/python3/dist-packages/Six-1.16.dist-info/METADATA", b"Name: Six\nVersion: 1.16\n\nText"
        ),
        file(
            b"opt/v/lib/site-packages/old.egg-info", b"Metadata-Version: 1.0\r\nName: old\r\nVersion: 2\r\n"
        ),
        file(b"opt/v/lib/site-packages/dir.egg-info/PKG-INFO", b"Name: dir\nVersion: 3\nLicense: MIT\n"),
        file(b"opt/v/zip.egg/EGG-INFO/PKG-INFO", b"Name: zip\nVersion: 4\nLicense-Expression: MIT OR X11\n"),
        file(b"opt/v/lib/site-packages/dir.egg-info/top_level.txt", b"Name: no\nVersion: 0\n"),
        file(b"METADATA", b"Name: no\nVersion: 0\n"),
    )
    assert [(p.name, p.version, p.licence) for p in inventory.packages] == [
        ("Six", "1.16", ""),
        ("dir", "3", "MIT"),
        ("old", "2", ""),
        ("zip", "4", "MIT OR X11"),
    ]


async def test_only_the_front_of_metadata_is_read():
    data = b"Name: big\nVersion: 1\n\n" + b"x" * 1_000_000
    image = memory_image(tar(file(b"big.dist-info/METADATA", data)))
    assert names(await find_packages(image)) == [("pypi", "big", "1")]
    assert bytes_read(image) == python.HEADER_SIZE


async def test_metadata_without_a_version_is_a_problem():
    inventory = await found(file(b"x.dist-info/METADATA", b"Name: x\n"))
    assert inventory.packages == ()
    assert inventory.problems == (Problem(b"x.dist-info/METADATA", "a package without a version: 'x'"),)


# npm


def manifest(name: str, version: str, **more) -> bytes:
    return json.dumps({"name": name, "version": version, **more}).encode()


async def test_npm_packages_are_read_one_by_one_where_no_lockfile_lists_them():
    inventory = await found(
        file(b"app/node_modules/a/package.json", manifest("a", "1.0.0", license="MIT")),
        file(b"app/node_modules/@scope/b/package.json", manifest("@scope/b", "2.0.0", license={"type": "X"})),
        file(b"app/node_modules/a/node_modules/c/package.json", manifest("c", "3.0.0")),
        file(b"app/node_modules/a/lib/package.json", manifest("no", "0")),
        file(b"app/node_modules/a/test/node_modules/broken/package.json", b"{"),
        file(b"app/package.json", manifest("app", "0")),
    )
    assert [(p.name, p.version, p.licence) for p in inventory.packages] == [
        ("@scope/b", "2.0.0", ""),
        ("a", "1.0.0", "MIT"),
        ("c", "3.0.0", ""),
    ]
    assert inventory.problems == ()


async def test_npm_s_lockfile_is_taken_for_what_it_lists_and_what_is_there():
    lockfile = {
        "lockfileVersion": 3,
        "packages": {
            "node_modules/a": {"version": "1.0.0", "license": "MIT"},
            "node_modules/gone": {"version": "9.0.0"},
            "node_modules/alias": {"name": "true-name", "version": "2.0.0"},
            "node_modules/linked": {"version": "3.0.0", "link": True},
        },
    }
    members = [
        file(b"node_modules/" + name + b"/package.json", manifest(name.decode(), "1.0.0"))
        for name in (b"a", b"alias", b"unlisted")
    ]
    image = memory_image(
        tar(file(b"node_modules/.package-lock.json", json.dumps(lockfile).encode()), *members)
    )
    inventory = await find_packages(image)
    assert names(inventory) == [
        ("npm", "a", "1.0.0"),
        ("npm", "true-name", "2.0.0"),
        ("npm", "unlisted", "1.0.0"),
    ]
    assert bytes_read(image) == len(json.dumps(lockfile)) + len(manifest("unlisted", "1.0.0"))


async def test_a_broken_lockfile_is_a_problem_and_the_manifests_are_read():
    inventory = await found(
        file(b"node_modules/.package-lock.json", b"[" * 100_000),
        file(b"node_modules/a/package.json", manifest("a", "1")),
    )
    assert names(inventory) == [("npm", "a", "1")]
    assert inventory.problems == (
        Problem(b"node_modules/.package-lock.json", "npm's hidden lockfile: nested too deeply"),
    )


# Everything


async def test_databases_that_upper_layers_hide_count_no_more():
    image = memory_image(
        tar(file(b"lib/apk/db/installed", INSTALLED)), tar(whiteout(b"lib/apk/db/installed"))
    )
    assert names(await find_packages(image)) == []


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (b"var/lib/dpkg/status", b"Package: x\nStatus: install ok installed\n"),
        (b"lib/apk/db/installed", b"V:1\n"),
    ],
)
async def test_a_package_without_name_or_version_is_a_problem(path, data):
    inventory = await found(file(path, data))
    assert [problem.path for problem in inventory.problems] == [path]


def test_a_value_of_a_million_lines_takes_a_moment_only():
    lines = 1_000_000
    database = b"Package: x\nVersion: 1\nArchitecture: a\n" + b" a\n" * lines
    (package,) = dpkg.parse_status(database, b"where")
    assert package.architecture == "a" + "\na" * lines


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [b"Package", b"Version", b"Status", b"P", b"V", b"Name", b":", b" ", b"\n", b"\n\n", b"\xff"]
        )
    ).map(b"".join)
)
def test_any_bytes_give_packages_or_our_own_errors(data):
    for parse in (dpkg.parse_status, apk.parse_installed, python.parse_metadata, node.parse_lockfile):
        try:
            result = parse(data, b"where")
            assert all(isinstance(p, Package) for p in ([result] if isinstance(result, Package) else result))
        except IndexerError:
            pass


def test_os_release_is_read_as_a_shell_would():
    data = (
        b'# c\nID=Alpine\nVERSION_ID=\'3.20\'\nPRETTY_NAME="Alpine \\"x\\""\nBROKEN=\'x\nno line\n\xff=\xff\n'
    )
    assert parse_os_release(data) == Distribution("alpine", "3.20", 'Alpine "x"')
    assert parse_os_release(b"") == Distribution()


PURLS = {
    "deb": (
        Package("deb", "g++", "1:2+b", b"", "amd64"),
        "pkg:deb/debian/g%2B%2B@1:2%2Bb?arch=amd64&distro=debian-12",
    ),
    "rpm": (
        Package("rpm", "x", "3:1-2", b"", "noarch"),
        "pkg:rpm/debian/x@1-2?arch=noarch&distro=debian-12&epoch=3",
    ),
    "apk": (Package("apk", "x", "1-r0", b""), "pkg:apk/debian/x@1-r0?distro=debian-12"),
    "deb of another source": (
        Package("deb", "x", "1", b"", source="y", source_version="2"),
        "pkg:deb/debian/x@1?distro=debian-12&upstream=y%402",
    ),
    "apk of another source": (
        Package("apk", "x", "1-r0", b"", source="y"),
        "pkg:apk/debian/x@1-r0?distro=debian-12&upstream=y",
    ),
    "apk of its own source": (
        Package("apk", "x", "1-r0", b"", source="x"),
        "pkg:apk/debian/x@1-r0?distro=debian-12",
    ),
    "rpm of a module": (
        Package("rpm", "x", "3:1-2", b"", source="x", source_version="1-2", module="x:1"),
        "pkg:rpm/debian/x@1-2?distro=debian-12&epoch=3&rpmmod=x:1&upstream=x-1-2.src.rpm",
    ),
    "pypi": (Package("pypi", "Flask_X", "1", b""), "pkg:pypi/flask-x@1"),
    "npm": (Package("npm", "@s/x", "1", b""), "pkg:npm/%40s/x@1"),
}


@pytest.mark.parametrize("kind", PURLS)
def test_package_urls_follow_their_types(kind):
    package, purl = PURLS[kind]
    assert package.purl(DEBIAN).to_string() == purl


@pytest.mark.parametrize(
    ("release", "beginning"),
    [
        ('ID="centos"\nVERSION_ID="7"\nID_LIKE="rhel fedora"\n', "centos/x@1?distro=centos-7"),
        ('ID="rhel"\nVERSION_ID="8.10"\n', "redhat/x@1?distro=rhel-8.10"),
        ('ID="amzn"\nVERSION_ID="2"\n', "amzn/x@1?distro=amzn-2"),
        ('ID="opensuse-leap"\nVERSION_ID="15.6"\n', "opensuse/x@1?distro=opensuse-leap-15.6"),
        ('ID="opensuse-tumbleweed"\n', "opensuse/x@1?distro=opensuse-tumbleweed"),
        ('ID="sles"\nVERSION_ID="15.6"\n', "sles/x@1?distro=sles-15.6"),
    ],
)
def test_package_urls_name_vendor_and_release(release, beginning):
    purl = Package("rpm", "x", "1", b"").purl(parse_os_release(release.encode()))
    assert purl.to_string() == f"pkg:rpm/{beginning}"


@pytest.mark.parametrize(
    ("line", "name", "version"),
    [
        ("CentOS release 6.10 (Final)", "centos", "6.10"),
        ("Red Hat Enterprise Linux Server release 6.10 (Santiago)", "rhel", "6.10"),
        ("Fedora release 13 (Goddard)", "fedora", "13"),
        ("Derived from Red Hat", "", ""),
        (" release 6", "", ""),
    ],
)
async def test_releases_before_os_release_are_known_by_a_line(line, name, version):
    old = file(b"etc/redhat-release", f"{line}\n".encode())
    assert (await found(old)).distribution == Distribution(name, version, line if name else "")
    both = (file(b"etc/os-release", b"ID=centos\nVERSION_ID=7\n"), old)
    assert (await found(*both)).distribution == Distribution("centos", "7")
