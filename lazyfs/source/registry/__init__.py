"""Registries as sources: tokens, mirrors, ranges of blobs, referrers."""
