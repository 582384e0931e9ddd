"""Formats of container layers: tar, gzip and zstd spans, tables of contents, merged trees, EROFS.

Pure: bytes in, values out. No network, no async, no FUSE.
"""
