"""Tar: a push parser, its dialects, and a writer."""
