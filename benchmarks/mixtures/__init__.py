"""Parts of benchmarks/reproduce_expert_specialization.py and experts_and_data.py: what was published, runs and page."""
