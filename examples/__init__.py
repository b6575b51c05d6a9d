"""Models and data that the demo, the tests and the benchmarks use; not part of the package."""
