"""Sources on disk: OCI layouts, archives, containerd's content store."""
