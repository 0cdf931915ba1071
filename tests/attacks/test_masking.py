"""Signs of gradient masking: each alone, in numbers that are made up."""

from __future__ import annotations

import pytest

from moe_det.attacks.masking import signs_of_masking

SOUND = {
    ('noise', 4.0): 0.50,
    ('fgsm', 4.0): 0.30,
    ('pgd-10', 4.0): 0.20,
    ('pgd-20', 4.0): 0.19,
    ('pgd-20-restarts', 4.0): 0.18,
    ('pgd-10', 8.0): 0.10,
}
FOREIGN = {4.0: {'dense': 0.40, 'expert 0': 0.19}}


def test_nothing_speaks_against_a_sound_attack():
    assert signs_of_masking(SOUND, FOREIGN) == []
    assert signs_of_masking({}, {}) == []


@pytest.mark.parametrize(
    ('attack', 'ap', 'sign'),
    [
        ('fgsm', 0.10, 'eps 4: one step does more than ten (AP 20.0 after pgd-10, 10.0 after fgsm)'),
        ('noise', 0.10, 'eps 4: random signs do more than the gradient (AP 20.0 after pgd-10, 10.0 after noise)'),
        (
            'pgd-20-restarts',
            0.10,
            'eps 4: more starts still lower AP (AP 19.0 after pgd-20, 10.0 after pgd-20-restarts)',
        ),
    ],
)
def test_each_sign_is_told(attack, ap, sign):
    assert signs_of_masking({**SOUND, (attack, 4.0): ap}, FOREIGN) == [sign]


def test_more_steps_larger_eps_and_foreign_images():
    found = signs_of_masking({('pgd-10', 4.0): 0.2, ('pgd-20', 4.0): 0.1}, {})
    assert found == ['eps 4: more steps still lower AP (AP 20.0 after pgd-10, 10.0 after pgd-20)']
    found = signs_of_masking({('pgd-10', 4.0): 0.2, ('pgd-10', 8.0): 0.3}, {})
    assert found == ['pgd-10: eps 8 does less than 4 (AP 30.0, 20.0)']
    (sign,) = signs_of_masking(SOUND, {4.0: {'dense': 0.1}})
    assert sign.startswith('eps 4: images made for dense do more than those made for itself (AP 10.0 and 20.0')
