"""How long containers take to start: `python -m bench cold`."""
