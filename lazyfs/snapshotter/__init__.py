"""The face to containerd: a proxy snapshotter whose layers need not be here."""
