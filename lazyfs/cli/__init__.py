"""The command line: reads argv and environment, prints answers on stdout and everything else on stderr."""

import os
import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. A Ctrl-C while it is still being imported ends it silently."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nothing here uses
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lazyfs.cli.main import main as run  # noqa: PLC0415  # so that what may be interrupted is in here

    signal.signal(signal.SIGINT, on_interrupt)
    run(arguments)
