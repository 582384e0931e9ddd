"""Where layer entries are: how one is found, made, trusted after a boot, or replaced.

No fsync is needed here. Marks of this boot count only while `state` names this boot, and boot ids never come
back: whatever part of an unsynced change survives a power cut, the next boot clears every mark that is not
`SYNCED`, and those were written after their data had been synced.
"""

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from indexer.digest import digest_hex
from lazyfs.cache.entry_files import ABSENT, PRESENT, EntryFiles, Geometry, State, fill_directory
from lazyfs.cache.files import cache_errors, is_at, make_directories
from lazyfs.cache.scratch import Scratch
from lazyfs.flock import directory_locked, directory_owned, try_flock

_log = logging.getLogger(__name__)

_GARBLED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})


class LayerStore(Struct, frozen=True):
    """Where entries are and what finding one takes.

    Attributes:
        layers: the directory of all entries.
        scratch: where they are made.
        boot_id: of this boot.
    """

    layers: Path
    scratch: Scratch
    boot_id: str

    def path(self, layer_digest: str, toc_digest: str) -> Path:
        """Where the entry of this layer under this table of contents is.

        Raises:
            FormatError: not sha256 digests.
        """
        return self.layers / digest_hex(layer_digest) / digest_hex(toc_digest)

    def attach(self, path: Path, geometry: Geometry) -> EntryFiles:
        """The files of the entry at `path`; made if there is none or it is garbled. Blocks for evictors.

        Marks that may have outrun their data in an unclean stop of another boot are cleared. The directory's
        modification time becomes now: the entry's last use. Where the disk does not allow an entry to be
        made, the files are homeless: reading goes on without them.

        Raises:
            CacheError: the entry may be there, but cannot be opened.
        """
        with cache_errors("open a layer's cache entry"):
            files = self.find(path, geometry)
            if files is None or not self.trusts(files):
                files = None  # its lock goes first, or two that wait here would keep each other's entry alive
                with directory_locked(self.layers):
                    files = self._find_or_make(path, geometry)
            with suppress(OSError):  # of a cache that is read only
                os.utime(files.directory)
            return files

    def _find_or_make(self, path: Path, geometry: Geometry) -> EntryFiles:
        files = self.find(path, geometry)
        if files is None:
            try:
                self._make(path, geometry)
            except OSError as error:
                _log.warning("nothing of layer %s is cached: %s", path.parent.name[:12], error.strerror)
                return EntryFiles.homeless(geometry)
            files = EntryFiles.at(path, geometry.leaves)
        if not self.trusts(files):
            _trust_synced_only(files, geometry, self.boot_id)
        return files

    def find(self, path: Path, geometry: Geometry) -> EntryFiles | None:
        """The files of the entry at `path` if there is a sound one. Blocks for evictors.

        Raises:
            OSError: it may be there, but cannot be opened.
        """
        try:
            files = EntryFiles.at(path, geometry.leaves)
        except OSError as error:
            if error.errno in _GARBLED:
                return None
            raise
        return files if is_at(files.directory, path) and files.usable(geometry) else None

    def install(self, made: Path, path: Path) -> None:
        """Renames a directory made in scratch to `path`, where any other is discarded.

        The caller holds the lock of `layers`.

        Raises:
            OSError: it cannot be done.
        """
        make_directories(path.parent, self.layers)
        self.scratch.discard(path)
        made.rename(path)

    def _make(self, path: Path, geometry: Geometry) -> None:
        with self.scratch.directory() as (directory, made):
            fill_directory(directory, State(self.boot_id, *geometry), ABSENT)
            self.install(made, path)

    def remove(self, path: Path) -> bool:
        """Removes the entry at `path`, and the layer's directory with the last of its entries.

        Returns:
            False, and nothing happens, while anybody has it open.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("remove a layer's cache entry"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return True
            try:
                if not (try_flock(descriptor) and is_at(descriptor, path)):
                    return False
                self.scratch.discard(path)
            finally:
                os.close(descriptor)
            with directory_owned(self.layers) as alone, suppress(OSError):
                if alone:  # else somebody may be about to put another entry there
                    path.parent.rmdir()
            return True

    def trusts(self, files: EntryFiles) -> bool:
        """Whether all marks were made in this boot, or have been synced."""
        state = files.read_state()
        return state is not None and state.boot_id == self.boot_id


def _trust_synced_only(files: EntryFiles, geometry: Geometry, boot_id: str) -> None:
    if not files.writable:
        files.marks = files.mapped[: geometry.leaves].replace(PRESENT, ABSENT)
        return
    with files.marks_locked():
        state = files.read_state() or State("", *geometry)
        for first, end in files.runs(PRESENT):
            files.mark(first, end, ABSENT)
        # On a full disk the old state stays: marks of this boot are then cleared once more by whoever opens.
        with suppress(OSError):
            files.write_state(replace(state, boot_id=boot_id))
