"""Bills of materials: what is in them, checked by the formats' own validators."""

import io
import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from indexer.errors import FormatError
from lazyfs.image.inside.packages.bill import Bill
from lazyfs.image.inside.packages.cyclonedx import write_cyclonedx
from lazyfs.image.inside.packages.find import KINDS, Inventory
from lazyfs.image.inside.packages.package import Distribution, Package
from lazyfs.image.inside.packages.spdx import write_spdx

DIGEST = "sha256:" + "1" * 64
MADE_AT = datetime(2024, 2, 29, 12, tzinfo=UTC)
PACKAGES = (
    Package("deb", "libc6", "2.36-9", b"var/lib/dpkg/status", "amd64", "glibc", "2.36-9"),
    Package(
        *("rpm", "two", "3:1-2", b"var/lib/rpm/rpmdb.sqlite"),
        *("noarch", "two", "1-2", "MIT and Odd", "two:rhel8:8090:abc"),
    ),
    Package("pypi", "six", "1.16", b"opt/\xff/METADATA", licence="MIT"),
    Package("pypi", "six", "1.16", b"usr/METADATA", licence="MIT OR Apache-2.0"),
)


def bill(*packages: Package, distribution: Distribution | None = None) -> Bill:
    inventory = Inventory(distribution or Distribution("debian", "12", "Debian 12"), packages, ())
    return Bill("docker://docker.io/library/x:1", DIGEST, inventory, MADE_AT, ("lazyfs", "1.0"))


def cyclonedx(given_bill: Bill) -> dict:
    text = write_cyclonedx(given_bill)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def spdx(given_bill: Bill) -> dict:
    document = json.loads(write_spdx(given_bill))
    assert validate_full_spdx_document(JsonLikeDictParser().parse(document)) == []
    return document


def test_cyclonedx_lists_every_package_where_it_was_found():
    document = cyclonedx(bill(*PACKAGES))
    system, *libraries = sorted(document["components"], key=lambda found: found["type"] == "library")
    assert (system["name"], system["version"]) == ("debian", "12")
    places = [found["evidence"]["occurrences"][0]["location"] for found in libraries]
    assert sorted(places) == [
        *("/opt/\\xff/METADATA", "/usr/METADATA", "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite")
    ]
    libc = next(found for found in libraries if found["name"] == "libc6")
    assert libc["purl"] == "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12&upstream=glibc"
    assert libc["properties"] == [{"name": "lazyfs:source", "value": "glibc 2.36-9"}]
    assert document["metadata"]["component"]["version"] == DIGEST
    assert document["metadata"]["timestamp"] == "2024-02-29T12:00:00+00:00"
    image = next(found for found in document["dependencies"] if found["ref"] == "image")
    assert len(image["dependsOn"]) == len(document["components"]) == len(PACKAGES) + 1


def test_spdx_contains_every_package():
    document = spdx(bill(*PACKAGES))
    image, system, *packages = document["packages"]
    assert (image["name"], image["versionInfo"]) == ("docker://docker.io/library/x:1", DIGEST)
    assert (system["name"], system["versionInfo"], system["summary"]) == ("debian", "12", "Debian 12")
    assert system["primaryPackagePurpose"] == "OPERATING_SYSTEM"
    assert [found["name"] for found in packages] == ["libc6", "two", "six", "six"]
    assert packages[0]["externalRefs"][0]["referenceLocator"].startswith("pkg:deb/debian/libc6@2.36-9?")
    assert packages[0]["sourceInfo"] == "found in /var/lib/dpkg/status, built from glibc 2.36-9"
    assert packages[1]["sourceInfo"] == "found in /var/lib/rpm/rpmdb.sqlite"
    assert [found["licenseDeclared"] for found in packages] == [
        *("NOASSERTION", "NOASSERTION", "MIT", "MIT OR Apache-2.0")
    ]
    assert packages[1]["licenseComments"] == "as written: MIT and Odd"
    contained = [r for r in document["relationships"] if r["relationshipType"] == "CONTAINS"]
    assert len(contained) == len(PACKAGES) + 1


@pytest.mark.parametrize("depth", [40, 400])
def test_a_licence_may_be_nested_as_deep_as_it_likes(depth):
    licence = "MIT AND (X11 OR (" * (depth // 2) + "MIT" + "))" * (depth // 2)
    package = Package("rpm", "deep", "1", b"", licence=licence)
    (found,) = cyclonedx(bill(package, distribution=Distribution()))["components"]
    assert ("expression" in found["licenses"][0]) == (depth < 50)
    assert (spdx(bill(package))["packages"][-1]["licenseDeclared"] == "NOASSERTION") == (depth > 50)


@pytest.mark.parametrize("write", [write_cyclonedx, write_spdx])
def test_the_same_image_at_the_same_time_gives_the_same_bill(write):
    assert write(bill(*PACKAGES)) == write(bill(*PACKAGES))


def test_an_empty_image_has_a_bill_too():
    nothing = bill(distribution=Distribution())
    assert "components" not in cyclonedx(nothing)
    assert len(spdx(nothing)["packages"]) == 1


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_WORDS = st.one_of(
    _TEXT, st.sampled_from(["a", "(((", "MIT AND (", "@a/b", "/", "a:b", "@a/", "@", "a/b", "..", "?"])
)


@st.composite
def _packages(draw: st.DrawFn) -> list[Package]:
    """Packages that can be, whatever their databases say of them."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        texts = [draw(_WORDS) for _ in range(6)]
        with suppress(FormatError):
            kind, where = draw(st.sampled_from(KINDS)), draw(st.binary(max_size=6))
            found.append(Package(kind, texts[0], texts[1], where, *texts[2:]))
    return found


@settings(max_examples=40)
@given(_packages(), st.builds(Distribution, _TEXT, _TEXT, _TEXT))
def test_whatever_databases_say_makes_valid_bills(packages, distribution):
    made = bill(*packages, distribution=distribution)
    assert len(cyclonedx(made).get("components", ())) == len(packages) + bool(distribution.id)
    out = io.StringIO(write_spdx(made))
    assert len(json.load(out)["packages"]) == len(packages) + 1 + bool(distribution.id)
