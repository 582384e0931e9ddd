"""Tables of contents of layers: made here, found elsewhere, published, and merged to trees."""
