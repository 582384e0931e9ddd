"""The documents of an image that is another one and a layer more (image-spec `config.md`, `manifest.md`)."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from posixpath import join, normpath
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from indexer.digest import sha256_digest
from lazyfs.container.dockerfile_words import one_word, split_words
from lazyfs.container.layer_file import WrittenLayer
from lazyfs.container.process import json_words
from lazyfs.errors import ContainerError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest
from lazyfs.oci.media_types import DOCKER_LAYER, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from lazyfs.source.push.artifact import descriptor_fields

_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_OCI_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
# The same blobs by the names of the OCI: a manifest holds either all or none of docker's.
_OCI_NAMES: Final[Mapping[str, str]] = {
    DOCKER_LAYER: OCI_LAYER,
    f"{DOCKER_LAYER}.gzip": f"{OCI_LAYER}+gzip",
    f"{DOCKER_LAYER}.zstd": f"{OCI_LAYER}+zstd",
    _DOCKER_FOREIGN: _OCI_FOREIGN,
    f"{_DOCKER_FOREIGN}.gzip": f"{_OCI_FOREIGN}+gzip",
}
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Making(Struct, frozen=True):
    """How the new layer came to be.

    Attributes:
        created: when, in RFC 3339.
        author: who made it, or "".
        message: a remark, or "".
        edits: changes to the configuration, as instructions of a Dockerfile.
    """

    created: str
    author: str = ""
    message: str = ""
    edits: tuple[str, ...] = ()


class NewImage(NamedTuple):
    """An image's documents, with links to them.

    Attributes:
        config: the configuration's bytes.
        config_link: link to it.
        manifest: the manifest's bytes.
        manifest_link: link to it.
        layer_link: link to the new layer.
    """

    config: bytes
    config_link: Descriptor
    manifest: bytes
    manifest_link: Descriptor
    layer_link: Descriptor


def new_image(base: Manifest, base_config: bytes, layer: WrittenLayer, making: Making) -> NewImage:
    """The image `base` with a layer more.

    Args:
        base: its manifest.
        base_config: the exact bytes of its configuration.
        layer: what was written.
        making: how it came to be.

    Raises:
        ContainerError: an edit makes no sense.
    """
    config = _encoded(_config(json.loads(base_config), layer, making))
    config_link = Descriptor(OCI_CONFIG, sha256_digest(config), len(config))
    layer_link = Descriptor(layer.media_type, layer.digest, layer.size)
    layers = [_layer_fields(link) for link in (*base.layers, layer_link)]
    manifest = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor_fields(config_link),
            "layers": layers,
            **({"annotations": dict(base.annotations)} if base.annotations else {}),
        }
    )
    manifest_link = Descriptor(OCI_MANIFEST, sha256_digest(manifest), len(manifest))
    return NewImage(config, config_link, manifest, manifest_link, layer_link)


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


def _layer_fields(link: Descriptor) -> dict[str, Any]:
    fields = descriptor_fields(replace(link, media_type=_OCI_NAMES.get(link.media_type, link.media_type)))
    return {**fields, "urls": list(link.urls)} if link.urls else fields


def _config(config: dict[str, Any], layer: WrittenLayer, making: Making) -> dict[str, Any]:
    step = {"created": making.created, "created_by": "lazyfs commit", "comment": making.message}
    if making.author:
        config["author"] = step["author"] = making.author
    config["created"] = making.created
    rootfs = config.get("rootfs") or {"type": "layers"}
    config["rootfs"] = {**rootfs, "diff_ids": [*(rootfs.get("diff_ids") or ()), layer.diff_id]}
    config["history"] = [*(config.get("history") or ()), {key: value for key, value in step.items() if value}]
    # What docker remembers of the container that made the base, and of its host.
    for name in ("container", "container_config", "docker_version"):
        config.pop(name, None)
    process = dict(config.get("config") or {})
    apply_edits(process, making.edits)
    config["config"] = process
    return config


def apply_edits(process: dict[str, Any], edits: Iterable[str]) -> None:
    """Carry out instructions of a Dockerfile on the "config" of a configuration.

    An ENTRYPOINT without a CMD beside it drops the image's CMD, which was for another program (Dockerfile
    reference, "Understand how CMD and ENTRYPOINT interact").

    Raises:
        ContainerError: one is none of those that only say something, or makes no sense.
    """
    done = {_apply_edit(process, edit) for edit in edits}
    if "ENTRYPOINT" in done and "CMD" not in done:
        process.pop("Cmd", None)


def _apply_edit(process: dict[str, Any], edit: str) -> str:
    """Carry out one of them; returns its first word."""
    word, _, rest = edit.strip().partition(" ")
    change = _EDITS.get(word.upper())
    if change is None or not rest.strip():
        raise ContainerError(f"{edit!r}: write one of {', '.join(_EDITS)} and what it is to be")
    change(process, rest.strip())
    return word.upper()


def _words(text: str) -> list[str]:
    """A JSON array of strings, or a line for the shell."""
    return json_words(text) if text.startswith("[") else ["/bin/sh", "-c", text]


def _variables(process: Mapping[str, Any]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in process.get("Env") or () if "=" in pair)


def _pairs(process: Mapping[str, Any], text: str) -> dict[str, str]:
    """NAME=VALUE ..., or NAME VALUE as Dockerfiles once had it."""
    values = _variables(process)
    first, _, rest = text.partition(" ")
    if _WORD.fullmatch(first) and rest:
        return {first: one_word(rest.strip(), values)}
    parts = [word.partition("=") for word in split_words(text, values)]
    if not all(name and equals for name, equals, _ in parts):
        raise ContainerError(f"{text!r}: write NAME=VALUE")
    return {name: value for name, _, value in parts}


def _set_env(process: dict[str, Any], text: str) -> None:
    values = {**_variables(process), **_pairs(process, text)}
    process["Env"] = [f"{name}={value}" for name, value in values.items()]


def _set_labels(process: dict[str, Any], text: str) -> None:
    process["Labels"] = {**(process.get("Labels") or {}), **_pairs(process, text)}


def _set_working_dir(process: dict[str, Any], text: str) -> None:
    """A relative path goes on from where the working directory was."""
    path = one_word(text, _variables(process))
    known = process.get("WorkingDir") or "/"
    process["WorkingDir"] = path if path.startswith("/") else normpath(join("/", known, path))


def _set_words(key: str) -> Callable[[dict[str, Any], str], None]:
    return lambda process, text: process.__setitem__(key, _words(text))


def _set_text(key: str) -> Callable[[dict[str, Any], str], None]:
    return lambda process, text: process.__setitem__(key, one_word(text, _variables(process)))


def _add_keys(key: str, ending: str = "") -> Callable[[dict[str, Any], str], None]:
    def change(process: dict[str, Any], text: str) -> None:
        values = _variables(process)
        if text.startswith("["):
            names = [one_word(word, values) for word in json_words(text)]
        else:
            names = split_words(text, values)
        named: dict[str, Any] = {name if "/" in name else name + ending: {} for name in names}
        process[key] = {**(process.get(key) or {}), **named}

    return change


_EDITS: Final[Mapping[str, Callable[[dict[str, Any], str], None]]] = {
    "CMD": _set_words("Cmd"),
    "ENTRYPOINT": _set_words("Entrypoint"),
    "ENV": _set_env,
    "WORKDIR": _set_working_dir,
    "USER": _set_text("User"),
    "STOPSIGNAL": _set_text("StopSignal"),
    "LABEL": _set_labels,
    "EXPOSE": _add_keys("ExposedPorts", "/tcp"),
    "VOLUME": _add_keys("Volumes"),
}
