"""Benchmarks: one table of cases, an accuracy check before every measurement, and the code that measures."""
