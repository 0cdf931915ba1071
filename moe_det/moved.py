"""Modules that have moved: their old import paths work for one release, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings


def moved(old: str, new: str) -> None:
    """Puts the module ``new`` in the place of ``old``, which is being imported."""
    warnings.warn(f'{old} is now {new}; the old path ends with the next release', FutureWarning, stacklevel=3)
    sys.modules[old] = importlib.import_module(new)
