"""Measuring a call: every candidate in a process of its own, in turns."""
