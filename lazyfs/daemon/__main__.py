"""The process behind one mount as a program."""

import sys

from lazyfs.daemon.process import main

if __name__ == "__main__":
    sys.exit(main())
