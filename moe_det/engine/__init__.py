"""Old import paths; see :mod:`moe_det.moved`."""
