"""Pushing to registries: blobs, images, artifacts, tags."""
