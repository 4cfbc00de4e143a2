"""Benchmarks: one table of cases, a gate of correctness before every time, and what measures them."""
