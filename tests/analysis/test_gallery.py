"""Which images and objects stand for an expert: the largest weight, then the largest probability."""

from __future__ import annotations

import numpy as np

from moe_det.analysis.gallery import favourite_images, favourite_objects
from moe_det.analysis.units import Unit


def test_images_of_equal_weight_are_ranked_by_probability():
    image_ids = np.array([7, 7, 8, 8, 9, 9])
    weights = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]])
    probs = np.array([[0.99, 0.01], [0.4, 0.6], [0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.8, 0.2]])
    assert favourite_images(weights, probs, image_ids, 0) == [(9, 1.0), (8, 1.0), (7, 0.5)]
    assert favourite_images(weights, probs, image_ids, 1) == [(7, 0.5)]


def test_objects_of_equal_weight_are_ranked_by_the_probability_of_their_row():
    rows = np.array([2, 0, 1, 3])
    zeros = np.zeros(4, int)
    unit = Unit(
        objects=np.arange(4),
        rows=rows,
        image_ids=np.array([5, 6, 7, 5]),
        levels=zeros,
        patches=zeros,
        experts=np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2], [0.5, 0.5]]),
        sizes=zeros,
        shares=np.ones(4),
    )
    probs = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.95, 0.05]])
    # the first by weight; then row 3, of the image that row 2 is of as well, and row 0
    assert favourite_objects(unit, probs, 0) == [2, 3, 1]
    assert favourite_objects(unit, probs, 1) == [0, 1, 2]
