"""Entries of the cache: what only tests do with them."""

from lazyfs.cache.cache import Cache


def remove_entry(cache: Cache, layer_digest: str, toc_digest: str) -> bool:
    """Remove a layer's entry as evictors do; False, and nothing happens, while anybody has it open."""
    return cache._store.remove(cache._store.path(layer_digest, toc_digest))
