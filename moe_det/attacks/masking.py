"""Whether an attack failed for a reason of its own: signs of gradient masking.

A model may hide its gradients instead of withstanding: then AP under the attack says nothing. The signs are those of
arXiv 1802.00420, section 3.1, and 1902.06705; that AP counts, and how much of it, is our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping

from .plan import FGSM, NOISE, PGD, PGD_LONG, PGD_RESTARTS, TRANSFERRED

TOLERANCE = 0.02  # AP, our own choice


def signs_of_masking(
    under: Mapping[tuple[str, float], float], foreign: Mapping[float, Mapping[str, float]], tolerance: float = TOLERANCE
) -> list[str]:
    """What speaks against the attacks on one row, in words; empty where nothing does.

    Args:
        under: AP in 0 ... 1 under each attack with the row's own gradient, by attack and eps.
        foreign: AP on the images that were made for another row, by eps and that row's name.
        tolerance: least difference of AP that counts.
    """
    found = []

    def weaker(first: str, second: str, what: str) -> None:
        """``first`` should lower AP as far as ``second`` does."""
        for eps in sorted({eps for _, eps in under}):
            own, other = under.get((first, eps)), under.get((second, eps))
            if own is not None and other is not None and own > other + tolerance:
                found.append(
                    f'eps {eps:g}: {what} (AP {100 * own:.1f} after {first}, {100 * other:.1f} after {second})'
                )

    weaker(PGD, FGSM, 'one step does more than ten')
    weaker(PGD, NOISE, 'random signs do more than the gradient')
    weaker(PGD, PGD_LONG, 'more steps still lower AP')
    weaker(PGD_LONG, PGD_RESTARTS, 'more starts still lower AP')
    for eps, by_row in sorted(foreign.items()):
        own = under.get((TRANSFERRED, eps))
        for name, other in by_row.items():
            if own is not None and own > other + tolerance:
                found.append(
                    f'eps {eps:g}: images made for {name} do more than those made for itself (AP {100 * other:.1f} and '
                    f'{100 * own:.1f} after {TRANSFERRED})'
                )
    for name in sorted({name for name, _ in under}):
        of_attack = sorted((eps, ap) for (attack, eps), ap in under.items() if attack == name)
        for (smaller, before), (larger, after) in zip(of_attack, of_attack[1:], strict=False):
            if after > before + tolerance:
                found.append(
                    f'{name}: eps {larger:g} does less than {smaller:g} (AP {100 * after:.1f}, {100 * before:.1f})'
                )
    return found
