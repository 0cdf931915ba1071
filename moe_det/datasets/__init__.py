"""Data sets of the package: synthetic shapes in COCO format (:mod:`~moe_det.datasets.shapes`)."""
