"""`lazyfs index` killed before steps of its work, each once, as the daemon is by `daemon_kill_steps`."""

import os
import sys
from pathlib import Path

from tests.support.daemon_kill_steps import VARIABLE, put_steps

_LOADER = "from tests.support import index_kill_steps\nindex_kill_steps.install()\n"


def prepared(place: Path) -> dict[str, str]:
    """The environment for a command that dies; `place` is an empty directory."""
    (place / "sitecustomize.py").write_text(_LOADER)
    root = Path(__file__).parents[2]
    return {VARIABLE: str(place), "PYTHONPATH": f"{place}{os.pathsep}{root}"}


def install() -> None:
    """Put the steps into the modules, in the command's own process."""
    if "index" not in sys.orig_argv:
        return
    from lazyfs.cache import filling, tocs
    from lazyfs.source.push import blob as push_blob
    from lazyfs.source.push import publisher as push

    put_steps(
        Path(os.environ[VARIABLE]),
        (filling.Filling, "write", "fill"),
        (tocs.Tocs, "save", "table"),
        (filling.Filling, "commit", "content"),
        (push_blob.BlobUploads, "_begin", "upload"),
        (push_blob.BlobUploads, "_put", "blob"),
        (push.RegistryPublisher, "_send_manifest", "manifest"),
        (push, "add_to_tag", "tag"),
    )
