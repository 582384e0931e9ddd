"""Which hosts stand for a registry: containerd's hosts.toml, and registries.conf."""
