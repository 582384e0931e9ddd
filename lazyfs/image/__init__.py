"""The model: images, their layers, and what a read needs. Knows sources and the cache, but no mount."""
