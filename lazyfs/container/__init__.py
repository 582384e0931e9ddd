"""Containers over lazy images: what a runtime is told, what is mounted for it, and what it leaves behind."""
