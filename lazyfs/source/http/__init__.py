"""Talking to hosts: documents over httpx, ranges over http.client in threads, tried again where it helps."""
