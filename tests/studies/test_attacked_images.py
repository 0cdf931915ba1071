"""Images are attacked where they have content, and by the rows that can be a source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import batch, detector, spread_weights

from moe_det.attacks.plan import ATTACKS, PARTS
from moe_det.attacks.rows import Row, rows_of_detector
from moe_det.probing.places import Truth
from moe_det.studies.attacked_images import Maker, Scene, sources_of, trials_of, victims_of


def scene(**meta) -> Scene:
    data = batch([(64, 64)])
    sample = data['data_samples'][0]
    found = sample.gt_instances
    del sample.gt_instances, sample.ignored_instances
    sample.set_metainfo(meta)
    boxes = found.bboxes.numpy().astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return Scene(0, data['inputs'][0].float()[None], sample, Truth(np.arange(2), boxes, found.labels.numpy()))


@pytest.mark.parametrize('name', ['noise', 'fgsm', 'pgd-10'])
def test_padding_of_the_pipeline_is_not_attacked(name):
    padded = scene(ori_shape=(80, 128), scale_factor=(0.5, 0.5))  # 40 x 64 of 64 x 64 pixels
    row = Row('dense', spread_weights(detector()).eval())
    (trial,) = trials_of([ATTACKS[name]], [8.0], ['both'])
    moved = (Maker()(trial, row, padded) - padded.images).abs()
    assert moved[..., :40, :].mean() > 1 and moved.max() <= 8 + 1e-4
    assert moved[..., 40:, :].max() == 0


def test_an_image_without_padding_is_attacked_everywhere():
    (trial,) = trials_of([ATTACKS['noise']], [8.0], ['both'])
    row, whole = Row('dense', torch.nn.Module()), scene(ori_shape=(64, 64), scale_factor=(1.0, 1.0))
    made = Maker()(trial, row, whole)
    assert ((made - whole.images).abs() > 0).float().mean() > 0.9
    assert torch.equal(made, Maker()(trial, row, whole)) and not torch.equal(made, Maker(seed=1)(trial, row, whole))


def test_who_attacks_and_who_is_shown_what():
    experts = spread_weights(detector(dict(num_experts=2, top_k=1, width=0.5))).eval()
    other = spread_weights(detector(dict(num_experts=3, top_k=1, width=0.5))).eval()
    rows = [*rows_of_detector('mine', experts, ('own', 'forced')), Row('dense', detector().eval())]
    rows += rows_of_detector('other', other, ('own',))

    def sources(name: str) -> list[str]:
        (trial,) = trials_of([ATTACKS[name]], [4.0], ['both'])
        return [row.name for row in sources_of(trial, rows)]

    assert sources('pgd-10') == sources('noise') == ['mine', 'expert 0', 'expert 1', 'dense', 'other']
    assert sources('pgd-20-restarts') == ['mine', 'dense', 'other']
    assert sources('gate-entropy') == ['mine', 'other']
    assert sources('worst-expert') == ['mine']  # another detector's layers and experts are others
    rows_forced = rows_of_detector('mine', experts, ('forced',))
    (checks,) = trials_of([ATTACKS['pgd-20-restarts']], [4.0], ['both'])
    assert sources_of(checks, rows_forced) == rows_forced[:1]
    by_part = trials_of([ATTACKS['pgd-10'], ATTACKS['noise']], [2.0, 4.0], PARTS)
    assert [(t.attack.name, t.eps, t.part) for t in by_part[-2:]] == [('noise', 2.0, None), ('noise', 4.0, None)]
    assert len(by_part) == 2 * 3 + 2
    assert victims_of(by_part[0], rows[1], rows) == rows and victims_of(by_part[1], rows[1], rows) == [rows[1]]
