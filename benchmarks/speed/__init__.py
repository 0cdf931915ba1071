"""The parts of benchmarks/moe_speed.py: reference patterns, clocks, counters, sections, record and page."""
