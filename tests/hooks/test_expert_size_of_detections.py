"""ExpertSizeHook on layers of queries and of regions: objects have the row of the detection that overlaps them."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
import small_regions
import torch
from small_models import batch, predictions_of

from moe_det.hooks.expert_size_hook import ExpertSizeHook
from moe_det.hooks.objects_by_size import ImageObjects

SMALL, LARGE = 10.0**2, 100.0**2  # areas that say which expert an object's detection must have


def of_queries(monkeypatch):
    """A DETR whose gate sorts by the box's size, the context to run it in, and what is positive for expert 1."""
    model = small_models.planted_detr(small_models.detr_config())
    limit = 64 / (1 + np.exp(-small_models.SIDE_LOGIT))

    def value(boxes: torch.Tensor) -> torch.Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).prod(1) - limit**2

    return model, small_models.LAYER, nullcontext, value


def of_regions(monkeypatch):
    """A Faster R-CNN whose gate sorts by the size of the region, which is the detection's box; likewise."""
    model = small_regions.boxes_are_regions(small_regions.faster_config())

    def told():
        return small_regions.gates_told(small_regions.within_level, monkeypatch)

    def value(boxes: torch.Tensor) -> torch.Tensor:
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        levels = (sides / small_regions.FINEST + 1e-6).log2().floor().clamp(0, 3)
        return small_regions.within_level(sides, levels)

    return model, small_regions.LAYER, told, value


@pytest.mark.parametrize('made', [of_queries, of_regions])
def test_an_object_has_the_row_of_its_detection(made, monkeypatch):
    model, layer, context, value = made(monkeypatch)
    data = batch([(64, 64)] * 3)
    objects, wanted = {}, np.zeros(2)
    with context():
        for image, found in enumerate(predictions_of(model, data)):
            signs = value(found.bboxes)
            # boxes inside the image and no near tie, of which each expert has some
            clear = (found.bboxes.amin(1) > 0.5) & (found.bboxes.amax(1) < 63.5) & (signs.abs() > 0.05)
            boxes = found.bboxes[clear].double().numpy()
            areas = np.where(signs[clear].numpy() > 0, LARGE, SMALL)
            wanted += [(areas == SMALL).sum(), (areas == LARGE).sum()]
            boxes[:, 2:] -= boxes[:, :2]
            boxes = np.concatenate([boxes, [[0, 0, 1, 1]]])  # and one that no detection overlaps
            areas = np.append(areas, SMALL)
            objects[image] = ImageObjects(areas, boxes[:, :2] + boxes[:, 2:] / 2, ('',) * len(areas), boxes)
        hook = ExpertSizeHook()
        hook._objects, hook.path = objects, 'objects'
        dataset = SimpleNamespace(metainfo=None)
        lines = []
        runner = SimpleNamespace(
            model=model,
            val_dataloader=SimpleNamespace(dataset=dataset),
            logger=SimpleNamespace(info=lines.append),
            message_hub=SimpleNamespace(update_scalar=lambda *_: None),
            visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None),
            _train_loop=None,
        )
        hook.before_val_epoch(runner)
        hook.before_val_iter(runner, 0, data)
        with torch.no_grad():
            hook.after_val_iter(runner, 0, data, model.test_step(data))
        hook.after_val_epoch(runner)
    assert (wanted > 2).all() and hook.counts.tolist() == [wanted[0] + 3, 0, wanted[1]]
    shares = hook.mass[layer] / hook.mass[layer].sum(0).clip(1e-9)
    assert hook.mass[layer].shape == (2, 3)
    assert shares[0, 0] > 0.99 and shares[1, 2] > 0.99
    assert layer in lines[0] and 'detection overlaps them most' in lines[0]
    assert 'anchor' not in predictions_of(model, data)[0]
