"""Parts of benchmarks/kill_and_resume.py: processes, what they leave, and the page."""
