"""Mount container images lazily: only the bytes that are read are fetched."""
