"""Part of benchmarks/kill_and_resume.py: processes and what they leave."""
