"""How sure a detector should be: disagreement of experts, and whether scores and doubts say what is true.

Letters: E experts, n detections. Entropies are in nats.
"""

from __future__ import annotations

import numpy as np

BINS = 15  # of scores, as in the code of arXiv 2509.04816


def binary_entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy of yes-no decisions with these probabilities, of the same shape."""
    p = np.clip(np.asarray(probs, dtype=np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def mutual_information(scores: np.ndarray) -> np.ndarray:
    """H(mean p) - mean H(p_e) over experts (arXiv 2509.04816): what knowing the expert would tell.

    There p_e is a softmax over classes. A detection has one score for its class, so the decision here is whether the
    object is of that class or not (our own choice).

    Args:
        scores: (E, n) score of each detection by each expert.

    Returns:
        (n,) from 0, where experts agree, to log 2.
    """
    return np.maximum(binary_entropy(scores.mean(axis=0)) - binary_entropy(scores).mean(axis=0), 0.0)


def box_disagreement(boxes: np.ndarray) -> np.ndarray:
    """(n,) mean over pairs of experts of one minus the IoU of their boxes (our own choice); 0 for a single expert.

    Args:
        boxes: (E, n, 4) x1, y1, x2, y2.
    """
    experts = len(boxes)
    pairs = [(a, b) for a in range(experts) for b in range(a)]
    if not pairs:
        return np.zeros(boxes.shape[1])
    return np.mean([1 - _iou(boxes[a], boxes[b]) for a, b in pairs], axis=0)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) IoU of boxes (n, 4) with boxes of the same number; 1 where both have no area."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (first, second)]
    union = areas[0] + areas[1] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 1.0)


def calibration(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict:
    """Detection calibration error, by scores alone (arXiv 2004.13546): precision against mean score.

    Args:
        scores: (n,) in 0 ... 1.
        correct: (n,) whether a detection matches an object.
        bins: number of intervals of equal width; a score on a limit counts above it, 1 in the last.

    Returns:
        ``d_ece``: sum over bins of their share of the detections times abs(precision - mean score); ``d_mce``: the
        largest of these differences; ``detections``; ``bins``: of each that has detections ``low``, ``high``,
        ``detections``, ``score`` and ``precision``. Without detections both errors are None.
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    number = np.minimum((scores * bins).astype(np.int64), bins - 1)
    found = []
    for bin_number in np.unique(number):
        at = number == bin_number
        found.append(
            {
                'low': bin_number / bins,
                'high': (bin_number + 1) / bins,
                'detections': int(at.sum()),
                'score': float(scores[at].mean()),
                'precision': float(correct[at].mean()),
            }
        )
    gaps = [abs(entry['precision'] - entry['score']) for entry in found]
    shares = [entry['detections'] / len(scores) for entry in found]
    return {
        'd_ece': float(np.dot(shares, gaps)) if found else None,
        'd_mce': max(gaps, default=None),
        'detections': len(scores),
        'bins': found,
    }


def certainty(uncertainty: np.ndarray, correct: np.ndarray, threshold: float | None = None) -> dict:
    """Whether detections in doubt are those that are wrong (arXiv 1811.12709).

    PAvPU is the share of *all* detections that are accurate and certain, or inaccurate and uncertain. The public code
    of arXiv 2509.04816 divides by the number of those that are certain or inaccurate instead, which may exceed 1.

    Args:
        uncertainty: (n,) larger where in doubt.
        correct: (n,) whether a detection matches an object.
        threshold: detections above it are uncertain; None takes the median, so that measures of different scale can be
            compared (our own choice).

    Returns:
        ``threshold``, ``pavpu``, ``accurate_if_certain`` and ``uncertain_if_inaccurate``; None where no detection
        decides.
    """
    uncertainty, correct = np.asarray(uncertainty, dtype=np.float64), np.asarray(correct, dtype=bool)
    if threshold is None:
        threshold = float(np.median(uncertainty)) if len(uncertainty) else 0.0
    uncertain = uncertainty > threshold
    return {
        'threshold': threshold,
        'pavpu': _share(correct != uncertain),
        'accurate_if_certain': _share(correct[~uncertain]),
        'uncertain_if_inaccurate': _share(uncertain[~correct]),
    }


def _share(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
