"""Written down before the runs of benchmarks/experts_that_pay.py, after one trial run of a row each at most."""

EXPECTED: list[str] = []
