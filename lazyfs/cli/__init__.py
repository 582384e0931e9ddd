"""The command line: reads argv and environment, prints answers on stdout and everything else on stderr."""

from lazyfs.cli.main import main

__all__ = ["main"]
