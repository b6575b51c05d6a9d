"""docs/coverage.md: the table of what is pruned, declined and failed, from the benchmark's rows."""
def write_page(d): pass
