"""The documents of an image: names, descriptors, manifests, configurations. Pure: bytes in, values out."""
