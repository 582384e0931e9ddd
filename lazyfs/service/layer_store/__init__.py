"""An additional layer store: the daemon's images layer by layer, for Podman."""
