"""The decomposition's numbers against values by hand and a plain loop."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from moe_det.classification.decomposition import DecompositionMeter


def entropy(shares) -> float:
    return -sum(p * math.log2(p) for p in shares if p > 0)


def by_hand(probs, predicted, by_expert, labels) -> tuple[float, float, float, float]:
    """error, I(E;Y) = H(E) + H(Y) - H(E,Y), H_s and H_u, sample by sample."""
    count = len(probs)
    chosen = [max(range(len(p)), key=p.__getitem__) for p in probs]
    parts = [Counter(chosen), Counter(by_expert), Counter(zip(chosen, by_expert, strict=True))]
    of_experts, of_classes, of_both = (entropy(n / count for n in part.values()) for part in parts)
    mean = [sum(column) / count for column in zip(*probs, strict=True)]
    error = sum(a != b for a, b in zip(predicted, labels, strict=True)) / count
    return error, of_experts + of_classes - of_both, sum(map(entropy, probs)) / count, entropy(mean)


def test_four_samples_by_hand():
    # experts 0, 0, 1, 1 predict the classes 0, 0, 1, 2: H(E) = 1, H(Y) = 1.5, H(E,Y) = 1.5. Two of four are wrong.
    meter = DecompositionMeter(2, 3)
    probs = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.0, 1.0], [0.5 - 1e-9, 0.5 + 1e-9]], dtype=torch.float64)
    meter.update(probs, torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]))
    found = meter.compute()
    assert found.error == 0.5
    assert found.information == pytest.approx(1)
    assert found.row_entropy == pytest.approx((entropy([0.75, 0.25]) + 1) / 4)
    assert found.batch_entropy == pytest.approx(entropy([2.25 / 4, 1.75 / 4]))
    assert found.table.tolist() == [[2, 0, 0], [0, 1, 1]]
    assert list(found.to_dict()) == ['error', 'I_EY', 'H_s', 'H_u'] and found.to_dict()['I_EY'] == found.information


def test_batches_add_up_to_the_whole_set():
    # later batches use other experts: an H_u of the last batch alone would differ
    logits = torch.randn(200, 5) + 3 * torch.eye(5)[torch.arange(200) // 40]
    probs = logits.softmax(1)
    predicted, by_expert, labels = torch.randint(0, 7, (3, 200))
    meter = DecompositionMeter(5, 7)
    meter.update(probs[:9], predicted[:9], by_expert[:9], labels[:9])
    meter.reset()
    for part in torch.arange(200).split(64):
        meter.update(probs[part], predicted[part], by_expert[part], labels[part])
    found = meter.compute()
    expected = by_hand(probs.tolist(), predicted.tolist(), by_expert.tolist(), labels.tolist())
    assert list(found.to_dict().values()) == pytest.approx(expected, rel=1e-6)
    assert found.batch_entropy > entropy(probs[192:].mean(0).tolist()) + 0.1
    assert found.samples == found.table.sum() == 200


def test_extremes():
    meter = DecompositionMeter(4, 4)
    classes = torch.arange(4).repeat(3)
    meter.update(torch.eye(4)[classes], classes, classes, classes)
    assert meter.compute().to_dict() == pytest.approx({'error': 0, 'I_EY': 2, 'H_s': 0, 'H_u': 2})
    meter.reset()
    meter.update(torch.full((8, 4), 0.25), classes[:8], classes[:8], (classes[:8] + 1) % 4)  # expert 0 for all
    assert meter.compute().to_dict() == pytest.approx({'error': 1, 'I_EY': 0, 'H_s': 2, 'H_u': 2})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'labels': torch.tensor([0, 3])}, 'labels holds class 3, expected 0 to 2'),
        ({'predicted': torch.tensor([-1, 0])}, 'predicted holds class -1'),
        ({'by_expert': torch.tensor([0])}, r'by_expert has shape \(1,\), expected \(2,\)'),
        ({'probs': torch.ones(2, 3)}, r'probs has shape \(2, 3\), expected \(n, 2\)'),
    ],
)
def test_bad_input(changes, message):
    zeros = torch.zeros(2, dtype=torch.long)
    batch = {'probs': torch.ones(2, 2), 'predicted': zeros, 'by_expert': zeros, 'labels': zeros, **changes}
    with pytest.raises(ValueError, match=message):
        DecompositionMeter(2, 3).update(**batch)


def test_too_few_samples():
    meter = DecompositionMeter(3, 2)
    one = torch.zeros(1, dtype=torch.long)
    meter.update(torch.eye(3)[:1], one, one, one)
    with pytest.raises(ValueError, match='1 samples are too few to tell what 3 experts do'):
        meter.compute()
