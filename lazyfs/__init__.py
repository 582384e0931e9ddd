"""Mount container images lazily: only the bytes that are read are fetched."""

__version__ = "0.1.0"
