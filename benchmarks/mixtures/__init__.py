"""Parts of benchmarks/reproduce_expert_specialization.py: what was published, runs and page."""
