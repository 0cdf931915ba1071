"""Moved to :mod:`moe_det.figures`."""

from ..moved import moved

moved(__name__, 'moe_det.figures')
