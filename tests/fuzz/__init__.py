"""Fuzz targets: they run as long as they are told to."""
