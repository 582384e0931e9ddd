"""What several tests use: oracles, real images, servers."""
