"""Moved to :mod:`moe_det.running.trained_model`."""

from ..moved import moved

moved(__name__, 'moe_det.running.trained_model')
