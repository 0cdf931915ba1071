"""size_specialization.py on an encoder whose gates know the map of a token alone, or the size of objects there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_files import DETR_NAMES, coco_content, use_noise_images, write_noise
from small_models import build, family, initialise, spread_weights

from moe_det.routing.gates import GAPLinearGate

LAYER = 'encoder.layers.1.ffn'
IMAGES = 60
SIDES = (8, 4, 2, 1)  # of the maps, for images of 64 pixels
TOKENS = sum(side**2 for side in SIDES)


def boxes_of(image: int) -> list[list[float]]:
    """In the left half of an image what is small for its map, in the right half what is large; two of each map."""
    rng = np.random.default_rng(image)
    found = []
    for low, high in ((20, 44), (46, 63)):  # sides that fit the maps of 8 x 8 and of 4 x 4 tokens
        for right in (0, 1):
            middle = (low + high) / 2
            side = rng.uniform(middle + 1, high) if right else rng.uniform(low, middle - 1)
            x, y = (32.5 if right else 31.5) - side / 2, rng.uniform(side / 2, 64 - side / 2) - side / 2
            found.append([x, y, side, side])
    return found


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('deformable')
    cfg = family('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    experts = [{'modules': LAYER, 'type': 'MoEFFN', 'num_experts': 2, 'top_k': 1}]
    cfg.model = {**cfg.model, 'type': 'WithExperts', 'detector': cfg.model['type'], 'experts': experts}
    write_noise(folder / 'images', IMAGES)
    use_noise_images(cfg, folder)
    cfg.dump(folder / 'deformable.py')
    torch.manual_seed(0)
    model = spread_weights(initialise(build(cfg.model)))
    with torch.no_grad():  # every detection is the whole image, of the first class
        for branch in model.bbox_head.cls_branches:
            branch.weight.zero_()
            branch.bias.copy_(torch.tensor([2.0, -2.0, -2.0]))
        for branch in model.bbox_head.reg_branches:
            branch[-1].weight.zero_()
            branch[-1].bias.copy_(torch.tensor([0.0, 0.0, 9.0, 9.0]))
        model.reference_points_fc.weight.zero_()
        model.reference_points_fc.bias.zero_()
    meta = {'dataset_meta': {'classes': DETR_NAMES}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'planted.pth')
    objects = [(image, 1, box) for image in range(IMAGES) for box in boxes_of(image)]
    content = coco_content(objects, range(IMAGES), dict(enumerate(DETR_NAMES, start=1)), (64, 64))
    (folder / 'annotations').mkdir()
    (folder / 'annotations' / 'truth.json').write_text(json.dumps(content))
    return folder


def plant(monkeypatch, expert_of) -> None:
    """Gates send each token to ``expert_of(map, column of the map)``."""
    experts = [expert_of(level, i % side) for level, side in enumerate(SIDES) for i in range(side**2)]
    logits = torch.nn.functional.one_hot(torch.tensor(experts), 2).float()
    monkeypatch.setattr(GAPLinearGate, 'logits', lambda self, x: logits.repeat(len(x) // TOKENS, 1))


def test_a_gate_that_sorts_within_the_map(size_report, place, tmp_path, monkeypatch):
    plant(monkeypatch, lambda level, column: int(column >= SIDES[level] / 2))
    (layer,) = size_report(place / 'deformable.py', place / 'planted.pth', 30, 50, options=('--no-forcing',))['layers']
    assert (layer['name'], layer['unit'], layer['main_unit']) == (LAYER, 'token', 'training')
    assert layer['levels'] == [1, 2]
    training = layer['units']['training']
    assert training['n_objects'] == 4 * IMAGES and training['sorts'] is True
    assert layer['units']['detection']['unavailable'] == 'no detection is made by a token of the encoder'
    assert layer['verdict'] == 'undetermined' and 'no detection is made by a token' in layer['undetermined_reason']
    assert layer['swap'] is None and 'too many tokens' in layer['swap_reason']
    assert 'Encoder layers are asked given the level' in (tmp_path / 'report.html').read_text().replace('&#39;', "'")


def test_a_gate_that_knows_the_map_alone(size_report, place, monkeypatch):
    plant(monkeypatch, lambda level, column: int(level > 0))
    (layer,) = size_report(place / 'deformable.py', place / 'planted.pth', 30, 50, options=('--no-forcing',))['layers']
    assert layer['units']['training']['sorts'] is False and layer['verdict'] == 'level-specialised'
    assert layer['level_mi_bits'] > 0.9
