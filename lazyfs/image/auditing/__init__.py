"""Whether a table of contents says what its layer holds: by hand, and in the background."""
