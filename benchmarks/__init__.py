"""Benchmarks: each runs as `python -m benchmarks.NAME` and writes one JSON envelope."""
