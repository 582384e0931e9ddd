"""A real image, a registry and a full pull on one machine: what `make demo` runs."""
