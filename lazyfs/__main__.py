"""`python -m lazyfs` is the command, where its own name is not in the path."""

from lazyfs.cli import main

if __name__ == "__main__":
    main()
