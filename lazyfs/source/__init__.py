"""Where images come from: registries and layouts. Documents and byte ranges in, errors of our own out."""
