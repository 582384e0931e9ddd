"""Spans: where a compressed layer can be entered, and how it is read from there."""
