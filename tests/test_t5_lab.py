"""The laboratory holds what tests rely on: real images of several layers, served blob for blob."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.images import MANIFEST_TYPES
from tests.support.lab import BASE, ODDITIES, Lab, LabRegistry, image_names, manifest_digest, push_layout
from tests.support.lab_build import LabError, run
from tests.support.lab_registry import docker_registry


def layers(layout: Path) -> list[dict[str, Any]]:
    """The layers' descriptors."""
    manifest = json.loads(blob(layout, manifest_digest(layout)).read_text())
    found: list[dict[str, Any]] = manifest["layers"]
    return found


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def names(layout: Path, layer: dict[str, Any]) -> list[str]:
    with tarfile.open(blob(layout, layer["digest"])) as tar:
        return [Path(name).name for name in tar.getnames()]


@pytest.mark.parametrize("name", image_names())
def test_every_image_has_layers_that_hide_lower_ones(lab: Lab, name: str) -> None:
    layout = lab.image(name)
    above = [member for layer in layers(layout)[1:] for member in names(layout, layer)]
    assert any(member.startswith(".wh.") and member != ".wh..wh..opq" for member in above)
    assert ".wh..wh..opq" in above


def test_images_share_the_layers_of_their_base(lab: Lab) -> None:
    shared = [layer["digest"] for layer in layers(lab.image(BASE))]
    for name in set(image_names()) - {BASE, ODDITIES}:
        own = [layer["digest"] for layer in layers(lab.image(name))]
        assert own[: len(shared)] == shared
        assert len(own) >= len(shared) + 2


@pytest.mark.parametrize("name", image_names())
def test_the_registry_serves_the_same_manifest(registry: LabRegistry, lab: Lab, name: str) -> None:
    address, _, rest = registry.reference(name).partition("/")
    repository, _, tag = rest.rpartition(":")
    accept = {"Accept": MANIFEST_TYPES["oci"]}  # it answers 404 to those who do not name the type
    answer = httpx.head(f"http://{address}/v2/{repository}/manifests/{tag}", headers=accept)
    assert answer.headers["docker-content-digest"] == manifest_digest(lab.image(name))


def test_the_shared_registry_takes_no_push(registry: LabRegistry, lab: Lab) -> None:
    with pytest.raises(LabError, match=r"405|UNSUPPORTED|Method Not Allowed|unsupported"):
        push_layout(lab.image(ODDITIES), f"{registry.address}/lab/other:latest")


def test_a_registry_of_a_test_takes_pushes_and_settings(lab: Lab, tmp_path: Path) -> None:
    settings = {"http": {"headers": {"X-Lab": ["here"]}}}
    with docker_registry(tmp_path, settings=settings) as address:
        push_layout(lab.image(ODDITIES), f"{address}/mine:1")
        answer = httpx.get(f"http://{address}/v2/mine/tags/list")
    assert (answer.json()["tags"], answer.headers["x-lab"]) == (["1"], "here")


def test_oddities_are_what_their_layers_say(unpacked: Any) -> None:
    root = unpacked(ODDITIES)
    listing = {
        folder: sorted(path.name for path in (root / folder).iterdir())
        for folder in ("again", "dir-then-dir", "file-then-dir", "hidden", "opaque", "opaque/sub")
    }
    assert listing == {
        "again": ["new"],
        "dir-then-dir": ["kept", "new"],
        "file-then-dir": ["new"],
        "hidden": ["also-linked", "file", "kept"],
        "opaque": ["new", "old", "sub"],
        "opaque/sub": ["new"],
    }
    assert (root / "opaque/old").read_text() == "upper\n"
    assert os.fsdecode(b"caf\xe9 \xff") in {path.name for path in (root / "names").iterdir()}
    assert len(os.getxattr(root / "bin/ping", "security.capability")) == 20


def test_a_tool_that_is_missing_is_named_with_what_to_do() -> None:
    with pytest.raises(LabError, match=r"^no-such-tool is missing: run scripts/setup test$"):
        run("no-such-tool")


def test_an_image_that_does_not_exist_is_an_error(lab: Lab) -> None:
    with pytest.raises(LabError, match="no image 'nothing'"):
        lab.image("nothing")
