"""The page of benchmarks/reproduce_soft_vs_hard.py."""
