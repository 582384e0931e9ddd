"""What outlives a daemon: its FUSE connections, who keeps them, and what the next one takes over."""
