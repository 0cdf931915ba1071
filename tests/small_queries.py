"""A small DETR whose boxes are known, and whose gate is planted to sort its queries by the size of their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from small_families import family
from small_models import batch, build, initialise, predictions_of, spread_weights
from torch import Tensor, nn

LAYER = 'decoder.layers.1.ffn'  # the last
OBJECTS = 4
SIDE_LOGIT = -1.5  # of the side of a box at the gate's limit, a part of the image
NAMES = ('a', 'b', 'c')


def detr_config(top_k: int = 1) -> Config:
    """DETR of an eighth of its channels with two experts for the queries of its last decoder layer."""
    cfg = family('detr/detr_r50_8xb2-150e_coco.py')
    experts = [{'modules': LAYER, 'type': 'MoEFFN', 'num_experts': 2, 'top_k': top_k}]
    cfg.model = {**cfg.model, 'type': 'WithExperts', 'detector': 'DETR', 'experts': experts}
    return cfg


def planted_detr(cfg: Config) -> nn.Module:
    """A DETR with random weights, but for what tells size.

    After the last cross-attention the layers keep a query as it is: experts give 0, norms scale nothing. Along one axis
    their content is the logit of the box's width and height, and along the same axis the gate sends small boxes to
    expert 0 and large ones to expert 1. Other axes give the place.
    """
    torch.manual_seed(0)
    model = spread_weights(initialise(build(cfg.model))).eval()
    head, layer = model.bbox_head, model.decoder.layers[-1]
    with torch.no_grad():
        for norm in [*layer.norms, model.decoder.post_norm]:
            norm.weight.fill_(1)
            norm.bias.zero_()
        for expert in layer.ffn.expert_group.experts:
            expert.layers[1].weight.zero_()
            expert.layers[1].bias.zero_()
        axes, offsets = _axes_of_queries(model, layer.ffn)
        gate = layer.ffn.router.gate.fc
        gate.weight.copy_(torch.stack([-axes[0], axes[0]]))
        gate.bias.copy_(torch.stack([-offsets[0], offsets[0]]))
        first, second = head.reg_ffn.layers[0][0], head.reg_ffn.layers[1]
        for linear in (first, second, head.fc_reg):
            linear.weight.zero_()
            linear.bias.zero_()
        # positive and negative part, for a ReLU follows
        first.weight[:3], first.weight[3:6] = axes, -axes
        first.bias[:3], first.bias[3:6] = offsets, -offsets
        second.weight[:6, :6] = torch.eye(6)
        # cx, cy, width, height: near the middle, so that the border cuts little off
        for side, (axis, scale) in enumerate(((1, 0.3), (2, 0.3), (0, 1.0), (0, 1.0))):
            head.fc_reg.weight[side, axis], head.fc_reg.weight[side, axis + 3] = scale, -scale
        head.fc_reg.bias[2:] = SIDE_LOGIT
    return model


def _axes_of_queries(model: nn.Module, ffn: nn.Module) -> tuple[Tensor, Tensor]:
    """(3, C) and (3,) that make three numbers of mean 0 and variance 1 of a query's content.

    The first is one of small variance before, which gates with random weights hardly see.
    """
    seen = []
    handle = ffn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].flatten(0, 1)))
    predictions_of(model, batch([(64, 64)] * 8))
    handle.remove()
    content = torch.cat(seen)
    axes = torch.linalg.svd(content - content.mean(0), full_matrices=False).Vh[[4, 0, 1]]
    along = content @ axes.T
    axes = axes / along.std(0)[:, None]
    return axes, -(content @ axes.T).mean(0)


def write_images(folder: Path, count: int) -> list[Path]:
    """Images of 64 pixels, of noise about a colour of their own."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f'{number}.png' for number in range(count)]
    for path in paths:
        noise = rng.integers(0, 100, (64, 64, 3)) + rng.integers(0, 155, 3)
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return paths


def boxes_as_truth(results: list, paths: list[Path], file: Path) -> None:
    """Writes some of a detector's own detections as the annotations of its images."""
    annotations = []
    rng = np.random.default_rng(0)
    for number, found in enumerate(results):
        for i in rng.permutation(len(found.scores))[:OBJECTS].tolist():
            x1, y1, x2, y2 = found.bboxes[i].tolist()
            box = {'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': (x2 - x1) * (y2 - y1), 'iscrowd': 0}
            entry = {'id': len(annotations), 'image_id': number, 'category_id': int(found.labels[i]) + 1, **box}
            annotations.append(entry)
    images = [{'id': i, 'file_name': path.name, 'width': 64, 'height': 64} for i, path in enumerate(paths)]
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(NAMES)]
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
