"""Parts of benchmarks/experts_and_data.py: runs and page."""
