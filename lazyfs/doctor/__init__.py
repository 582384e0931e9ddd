"""Looks at a machine and says whether lazyfs can work there, and what to change.

Each check gives findings; nothing is changed. Files are looked for below a root directory, so that a tree of
files can stand for a machine.
"""
