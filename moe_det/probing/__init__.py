"""Asking a trained detector questions: where each detection came from, and what changes with other routing."""
