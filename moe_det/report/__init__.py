"""The report of a size-specialisation analysis: one self-contained page, and a table for the console."""

from __future__ import annotations

from .console import console_table
from .page import write_report

__all__ = ['console_table', 'write_report']
