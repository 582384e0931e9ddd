"""EROFS images of metadata: a writer, and a reader over a mapped file."""
