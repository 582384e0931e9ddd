"""Measures the parts of lazyfs that decide its speed, side by side with what else there is."""
