"""Experts in the modules of any detector, by their paths."""

from .with_experts import WithExperts

__all__ = ['WithExperts']
