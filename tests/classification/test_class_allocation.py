"""Class allocation of arrays: means by hand, top lists, superclasses, information."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from moe_det.classification.cifar100_groups import CIFAR100_GROUPS, class_groups
from moe_det.classification.class_allocation import AllocationMeter, allocation_text, class_heat, group_heat

CLASSES = ('shark', 'oak', 'chair', 'empty')


def measured(groups=None):
    meter = AllocationMeter('backbone.layer4', 2, CLASSES, groups)
    meter.update([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    meter.update([[0.7, 0.3], [0.5, 0.5], [0.0, 1.0]], [0, 1, 2])
    return meter.compute()


def test_weights_are_means_over_the_samples_of_a_class():
    found = measured()
    np.testing.assert_allclose(found.weights[:3], [[0.8, 0.2], [0.35, 0.65], [0.0, 1.0]])
    assert np.isnan(found.weights[3]).all() and found.samples.tolist() == [2, 2, 1, 0]
    assert found.top_classes(0, 2) == [('shark', pytest.approx(0.8)), ('oak', pytest.approx(0.35))]
    assert [name for name, _ in found.top_classes(1, 9)] == ['chair', 'oak', 'shark']  # never the class without samples


def test_superclasses_are_means_over_samples_not_over_classes():
    found = measured({'living': (0, 1, 3), 'things': (2,), 'nothing': (3,)})
    np.testing.assert_allclose(found.group_weights()[:2], [[(0.9 + 0.2 + 0.7 + 0.5) / 4, 1.7 / 4], [0, 1]])
    assert np.isnan(found.group_weights()[2]).all()
    uneven = AllocationMeter('x', 2, ('a', 'b'), {'both': (0, 1)})
    uneven.update([[1, 0], [1, 0], [0, 1]], [0, 0, 1])
    np.testing.assert_allclose(uneven.compute().group_weights(), [[2 / 3, 1 / 3]])


def test_information_is_that_of_an_expert_drawn_with_the_gates_probabilities():
    joint = np.array([[1.6, 0.4], [0.7, 1.3], [0.0, 1.0]]) / 5
    expected = 0.0
    for i in range(3):
        for e in range(2):
            if joint[i, e]:
                expected += joint[i, e] * math.log2(joint[i, e] / (joint[i].sum() * joint[:, e].sum()))
    assert measured().information == pytest.approx(expected)
    apart = AllocationMeter('x', 2, ('a', 'b'))
    apart.update(np.eye(2), [0, 1])
    assert apart.compute().information == pytest.approx(1)
    alike = AllocationMeter('x', 2, ('a', 'b'))
    alike.update([[0.3, 0.7]] * 2, [0, 1])
    assert alike.compute().information == pytest.approx(0, abs=1e-12)


def test_text_dict_and_tables_say_the_same():
    found = measured({'living': (0, 1), 'things': (2, 3)})
    text = allocation_text(found, count=2)
    assert '  expert 0: shark 0.80, oak 0.35\n  expert 1: chair 1.00, oak 0.65' in text
    assert text.splitlines()[-1].split() == ['things', '0.00', '1.00']
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content['weights'][3] == [None, None] and content['groups']['things'] == [0.0, 1.0]
    assert content['top_classes'][1][0] == {'class': 'chair', 'weight': 1.0}
    rows = class_heat(found).rows
    assert [(head.text, head.notes) for head, _ in rows][2] == ('chair', ('things',))
    assert [cell.number.text for cell in rows[0][1]] == ['0.80', '0.20']
    assert len(group_heat(found).rows) == 2 and not group_heat(measured())


@pytest.mark.parametrize(
    'probs, labels, message',
    [
        ([[0.5, 0.5, 0]], [0], r'shape \(1, 3\).*expected \(n, 2\)'),
        ([[0.5, 0.5]], [0, 1], r'labels of shape \(2,\)'),
        ([[0.5, 0.5]], [4], r'label 4, expected 0 to 3'),
        ([[0.5, 0.5]], [-1], r'label -1, expected 0 to 3'),
    ],
)
def test_misfits_are_named(probs, labels, message):
    with pytest.raises(ValueError, match=message):
        AllocationMeter('x', 2, CLASSES).update(probs, labels)


def test_superclasses_of_cifar100():
    names = [name for members in CIFAR100_GROUPS.values() for name in members]
    assert len(CIFAR100_GROUPS) == 20 and len(set(names)) == 100
    assert all(len(members) == 5 and list(members) == sorted(members) for members in CIFAR100_GROUPS.values())
    classes = sorted(names)  # the order of the labels
    groups = class_groups(classes)
    assert [classes[i] for i in groups['trees']] == [
        'maple_tree', 'oak_tree', 'palm_tree', 'pine_tree', 'willow_tree',
    ]  # fmt: skip
    # fine labels of the published archives
    assert groups['aquatic mammals'] == (4, 30, 55, 72, 95) and groups['trees'] == (47, 52, 56, 59, 96)
    assert class_groups([name.replace('_', ' ') for name in classes]) == groups
    assert class_groups(classes[:-1]) is None and class_groups(['cat', 'dog']) is None
