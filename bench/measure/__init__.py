"""Measuring a call: every candidate in its own process, in interleaved rounds."""
