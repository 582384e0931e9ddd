"""The process behind one mount, `python -m lazyfs.daemon`; that behind containerd is `lazyfs.service`."""
