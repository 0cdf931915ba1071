"""Ids of images, annotations and categories: what mmdet takes, and what the evaluation then makes of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from .report import Report, shown


def is_id(value: Any) -> bool:
    """Tells whether a value of the file can be an id."""
    return isinstance(value, str) or (type(value) in (int, float) and abs(value) < float('inf') and value == int(value))


def report_lost_ids(kind: str, ids: Collection, report: Report) -> None:
    """Reports ids that the evaluation loses: pycocotools makes one array of them, of texts or floats if they differ."""
    try:
        lost = len(set(ids) - set(np.unique(np.asarray(list(ids)))))
    except (TypeError, OverflowError):
        lost = len(ids)
    if lost:
        some = sorted(ids, key=lambda ident: (isinstance(ident, str), ident if not isinstance(ident, str) else 0))
        report.add('lost_ids', kind, f'{lost:,} of {len(ids):,}, such as {shown(some[0])} and {shown(some[-1])}')


def other_type(value: object, known: dict | set) -> object | None:
    """Returns the id among ``known`` that ``value`` names but for its type."""
    if isinstance(value, str):
        digits = value.strip()
        value = int(digits) if digits.isdecimal() and len(digits) < 20 else None
    else:
        value = str(value)
    return value if value is not None and value in known else None
