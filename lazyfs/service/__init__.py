"""`lazyfs daemon`: the one process that serves the data of all lazy chains of a machine; its client."""
