"""The methods by name."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from bench.cold.methods.base import Context, Method
from bench.cold.methods.docker import FullDocker
from bench.cold.methods.foreign import Soci, Stargz
from bench.cold.methods.full import FullContainerd, Skopeo
from bench.cold.methods.lazy import Lazy, Program
from bench.cold.methods.podman import FullPodman
from bench.cold.run import context_of
from bench.cold.store import INDEXED, PACKED, PLAIN, Store
from bench.cold.workload import Workload

_LAZYFS: Final = (
    *(("run", way) for way in (PLAIN, INDEXED, PACKED)),
    *(("mount", way) for way in (PLAIN, INDEXED, PACKED)),
    *(("containerd", way) for way in (INDEXED, PACKED)),
    *(("podman", way) for way in (INDEXED, PACKED)),
    *(("docker", way) for way in (INDEXED, PACKED)),
)


class UnknownName(Exception):
    """A name that stands for nothing; the message says what there is."""


def methods(store: Store, programs: Path | None = None) -> Mapping[str, Method]:
    """The built-in methods, in the order of tables.

    Args:
        store: the images.
        programs: where programs are looked for first.
    """

    def inside(workload: Workload, reference: str) -> AbstractContextManager[Context]:
        return context_of(store, workload, reference, store.home, list)

    every: Sequence[Method] = (
        FullContainerd(),
        Skopeo(),
        FullPodman(),
        FullDocker(programs),
        Stargz(store),
        Stargz(store, optimized=True),
        Soci(store),
        *(Lazy(face, way, inside, programs=programs) for face, way in _LAZYFS),
    )
    return {method.name: method for method in every}


def chosen(names: Sequence[str], store: Store, programs: Path | None = None) -> Mapping[str, Method]:
    """Methods by their names, of a store's images; programs are looked for in a folder first.

    So are those of another lazyfs, as "lazyfs-run@PROGRAM", and those of users, as "MODULE:CLASS" of a class
    that makes one without arguments.

    Raises:
        UnknownName: there is none of a name.
    """
    built_in = methods(store, programs)
    found = [_found(name, built_in) for name in names]
    return {method.name: method for method in found}


def _found(name: str, built_in: Mapping[str, Method]) -> Method:
    known, at, program = name.partition("@")
    method = built_in.get(known)
    if method is not None and not at:
        return method
    if isinstance(method, Lazy) and program:
        return replace(method, program=Program(Path(program).absolute()))
    if method is None and ":" in name:
        return _adapter(name)
    raise UnknownName(
        f"no method {name}; there are {', '.join(built_in)}, those of lazyfs also as NAME@PROGRAM,"
        " and MODULE:CLASS"
    )


def _adapter(name: str) -> Method:
    module, _, attribute = name.partition(":")
    try:
        return cast("Method", getattr(importlib.import_module(module), attribute)())
    except (ImportError, AttributeError, TypeError) as error:
        raise UnknownName(f"no method {name}: {error}") from error
