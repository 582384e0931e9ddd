"""The methods by name."""

import importlib
from collections.abc import Mapping, Sequence
from typing import cast

from bench.cold.methods.base import Method
from bench.cold.methods.foreign import Soci, Stargz
from bench.cold.methods.full import FullContainerd, Skopeo
from bench.cold.methods.lazy import with_index, without_index
from bench.cold.store import Store


class UnknownName(Exception):
    """A name that stands for nothing; the message says what there is."""


def methods(store: Store) -> Mapping[str, Method]:
    """The built-in methods, in the order of tables."""
    every: Sequence[Method] = (
        FullContainerd(),
        Skopeo(),
        Stargz(store),
        Stargz(store, optimized=True),
        Soci(store),
        without_index(),
        with_index(),
    )
    return {method.name: method for method in every}


def chosen(names: Sequence[str], store: Store) -> Mapping[str, Method]:
    """Methods by their names, or by "MODULE:CLASS" where the class makes one without arguments.

    Raises:
        UnknownName: there is none of a name.
    """
    built_in = methods(store)
    found = [_adapter(name) if ":" in name else built_in.get(name) or _unknown(name, built_in) for name in names]
    return {method.name: method for method in found}


def _unknown(name: str, built_in: Mapping[str, Method]) -> Method:
    raise UnknownName(f"no method {name}; there are {', '.join(built_in)}, or MODULE:CLASS")


def _adapter(name: str) -> Method:
    module, _, attribute = name.partition(":")
    try:
        return cast("Method", getattr(importlib.import_module(module), attribute)())
    except (ImportError, AttributeError, TypeError) as error:
        raise UnknownName(f"no method {name}: {error}") from error
