"""Parts of benchmarks/specialization_on_shapes.py: conclusion and page."""
