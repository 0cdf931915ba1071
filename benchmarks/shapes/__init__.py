"""Parts of benchmarks/specialization_on_shapes.py: statistics over seeds, conclusion and page."""
