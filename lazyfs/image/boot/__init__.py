"""Starts: what they touch first, recorded, packed, and brought before it is asked for."""
