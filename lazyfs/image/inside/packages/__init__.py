"""What software an image says it holds: readers of package databases, and bills of materials from them."""
