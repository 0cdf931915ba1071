"""Moved to :mod:`moe_det.running.launch`."""

from ..moved import moved

moved(__name__, 'moe_det.running.launch')
