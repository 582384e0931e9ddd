"""Credentials: where users and the kubelet keep them."""
