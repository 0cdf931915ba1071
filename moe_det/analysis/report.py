"""Moved to :mod:`moe_det.report`."""

from ..moved import moved

moved(__name__, 'moe_det.report')
