"""What arXiv 2302.14703 publishes about MNIST and Fashion-MNIST: tables, and the runs they were chosen from."""

from __future__ import annotations

from dataclasses import dataclass

DATA_SETS = {'mnist': 'MNIST', 'fashion_mnist': 'Fashion-MNIST'}


@dataclass(frozen=True)
class Published:
    """A row of the paper's tables: the run with the lowest train error of ``chosen_from`` runs.

    ``std`` is the standard deviation of the test errors of all of these.
    """

    train_error: float
    test_error: float
    information: float | None
    row_entropy: float | None
    batch_entropy: float | None
    std: float
    chosen_from: int


PUBLISHED = {
    'mnist': {
        'single': Published(0.097, 0.096, None, None, None, 0.071, 10),
        'original': Published(0.021, 0.038, 2.022, 0.092, 2.172, 0.009, 10),
        'original_importance': Published(0.015, 0.032, 2.262, 0.061, 2.320, 0.008, 50),
        'original_similarity': Published(0.015, 0.029, 2.244, 0.051, 2.246, 0.009, 120),
        'attentive': Published(0.019, 0.033, 1.797, 0.071, 2.055, 0.006, 10),
        'attentive_importance': Published(0.013, 0.035, 2.260, 0.055, 2.266, 0.005, 50),
        'attentive_similarity': Published(0.013, 0.032, 2.275, 0.039, 2.321, 0.006, 120),
        'distilled_importance': Published(0.009, 0.030, 2.301, 0.036, 2.320, 0.007, 50),
        'distilled_similarity': Published(0.009, 0.028, 2.191, 0.056, 2.319, 0.007, 120),
    },
    'fashion_mnist': {
        'single': Published(0.115, 0.132, None, None, None, 0.011, 10),
        'original': Published(0.041, 0.104, 2.034, 0.081, 2.048, 0.006, 10),
        'original_importance': Published(0.031, 0.103, 2.301, 0.172, 2.321, 0.006, 50),
        'original_similarity': Published(0.018, 0.095, 2.198, 0.110, 2.225, 0.007, 140),
        'attentive': Published(0.041, 0.098, 2.071, 0.114, 2.249, 0.013, 10),
        'attentive_importance': Published(0.014, 0.098, 2.233, 0.101, 2.319, 0.006, 50),
        'attentive_similarity': Published(0.014, 0.096, 2.296, 0.109, 2.321, 0.008, 140),
        'distilled_importance': Published(0.004, 0.087, 2.227, 0.101, 2.318, 0.007, 50),
        'distilled_similarity': Published(0.005, 0.089, 2.304, 0.076, 2.321, 0.008, 140),
    },
}

Spread = tuple[float, float]  # mean, standard deviation (n - 1)
RUNS_EACH = 10


@dataclass(frozen=True)
class AuthorsRuns:
    """The authors' ten runs at the setting of a row."""

    train_error: Spread
    test_error: Spread
    information: Spread | None = None
    row_entropy: Spread | None = None
    batch_entropy: Spread | None = None


# MNIST: aaai_2022/results/mnist_results.csv at 9d92b5e. Fashion-MNIST: the last epoch of each run as printed, with two
# digits, in aaai_2022/notebooks/fmnist_moe_with_attention.ipynb at 68bb9c4 and fmnist_original_moe_training.ipynb at
# 5435a25; the rows that are missing are not printed there. All in the repository yamsgithub/modular_deep_learning.
AUTHORS = {
    'mnist': {
        'single': AuthorsRuns((0.1361, 0.0719), (0.1340, 0.0709)),
        'original': AuthorsRuns((0.0340, 0.0128), (0.0443, 0.0085), (1.606, 0.395), (0.136, 0.100), (1.838, 0.241)),
        'original_importance': AuthorsRuns(
            (0.0248, 0.0095), (0.0384, 0.0061), (1.970, 0.225), (0.142, 0.096), (2.270, 0.053)
        ),
        'original_similarity': AuthorsRuns(
            (0.0245, 0.0093), (0.0374, 0.0078), (1.993, 0.305), (0.134, 0.108), (2.286, 0.031)
        ),
        'attentive': AuthorsRuns((0.0311, 0.0095), (0.0425, 0.0061), (1.828, 0.221), (0.0645, 0.0234), (1.953, 0.182)),
        'attentive_importance': AuthorsRuns(
            (0.0220, 0.0074), (0.0372, 0.0034), (2.182, 0.056), (0.0608, 0.0193), (2.235, 0.041)
        ),
        'attentive_similarity': AuthorsRuns(
            (0.0228, 0.0092), (0.0380, 0.0051), (2.219, 0.039), (0.0642, 0.0236), (2.280, 0.029)
        ),
        'distilled_importance': AuthorsRuns(
            (0.0187, 0.0076), (0.0381, 0.0082), (2.208, 0.062), (0.0634, 0.0340), (2.284, 0.029)
        ),
        'distilled_similarity': AuthorsRuns(
            (0.0151, 0.0044), (0.0345, 0.0061), (2.167, 0.109), (0.0576, 0.0247), (2.275, 0.049)
        ),
    },
    'fashion_mnist': {
        'single': AuthorsRuns((0.132, 0.0079), (0.148, 0.0123)),
        'original_importance': AuthorsRuns((0.046, 0.0097), (0.104, 0.0052)),
        'attentive': AuthorsRuns((0.067, 0.0236), (0.114, 0.0135)),
        'attentive_importance': AuthorsRuns((0.043, 0.0183), (0.105, 0.0053)),
        'attentive_similarity': AuthorsRuns((0.045, 0.0172), (0.105, 0.0053)),
        'distilled_importance': AuthorsRuns((0.036, 0.0158), (0.108, 0.0092)),
        'distilled_similarity': AuthorsRuns((0.037, 0.0149), (0.102, 0.0063)),
    },
}
