"""containerd's configuration in tests: that of docs/containerd.md, with paths and comforts of the test."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "containerd.md"
CRI_1 = "io.containerd.grpc.v1.cri"
CRI_2_IMAGES, CRI_2_RUNTIME = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"


def documented(version: int) -> dict[str, Any]:
    """The configuration of a version as the page has it."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (found,) = (config for config in map(tomllib.loads, blocks) if config["version"] == version)
    return found


def config_text(version: int, top: Path, snapshotter: Path, root: Path, sandbox: str) -> str:
    """A whole configuration file.

    Args:
        version: 2 or 3.
        top: a directory for containerd's own files.
        snapshotter: the snapshotter's socket.
        root: the snapshotter's directory.
        sandbox: the image of pod sandboxes.
    """
    config = documented(version)
    config["proxy_plugins"]["lazyfs"]["address"] = str(snapshotter)
    if version > 2:
        config["proxy_plugins"]["lazyfs"]["exports"]["root"] = str(root)
    _merge(config, _common(top))
    _merge(config["plugins"], _cri_1(top, sandbox) if version == 2 else _cri_2(top, sandbox))
    return "\n".join(_toml(config, ()))


def _common(top: Path) -> dict[str, Any]:
    return {
        "root": f"{top}/root",
        "state": "/run/containerd/state",  # where users other than root get, too
        "grpc": {"address": f"{top}/sock"},
        "ttrpc": {"address": f"{top}/sock.ttrpc"},
        "disabled_plugins": [
            *(f"io.containerd.snapshotter.v1.{name}" for name in ("btrfs", "devmapper", "zfs", "aufs")),
            *("io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"),
        ],
        "plugins": {},
    }


_RUNC = {"runc": {"runtime_type": "io.containerd.runc.v2"}}


def _cri_1(top: Path, sandbox: str) -> dict[str, Any]:
    return {
        CRI_1: {
            "restrict_oom_score_adj": True,
            "disable_apparmor": True,
            "sandbox_image": sandbox,
            "stream_server_port": "0",
            "registry": {"config_path": f"{top}/certs.d"},
            "containerd": {"runtimes": _RUNC},
        }
    }


def _cri_2(top: Path, sandbox: str) -> dict[str, Any]:
    return {
        CRI_2_IMAGES: {
            "pinned_images": {"sandbox": sandbox},
            "registry": {"config_path": f"{top}/certs.d"},
        },
        CRI_2_RUNTIME: {
            "restrict_oom_score_adj": True,
            "disable_apparmor": True,
            "containerd": {"runtimes": _RUNC},
        },
    }


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target.setdefault(key, value)


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """A table and those below it; JSON's strings, numbers, booleans and flat lists are TOML's."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lists = {key: value for key, value in table.items() if _is_list_of_tables(value)}
    if path:
        yield "[" + ".".join(map(json.dumps, path)) + "]"
    for key, value in table.items():
        if key not in inner and key not in lists:
            yield f"{key} = {json.dumps(value)}"
    for key, value in inner.items():
        yield from _toml(value, (*path, key))
    for key, value in lists.items():
        for item in value:
            yield "[[" + ".".join(map(json.dumps, (*path, key))) + "]]"
            yield from (f"{name} = {json.dumps(one)}" for name, one in item.items())


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
