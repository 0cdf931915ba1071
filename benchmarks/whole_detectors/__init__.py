"""What benchmarks/mixture_of_detectors.py trains and measures."""
