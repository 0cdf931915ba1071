"""The order of an epoch, and the seed from which its augmentations are drawn."""

from __future__ import annotations

from mmengine.dataset import DefaultSampler


class EpochSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` that also tells the data set which epoch it is, for its augmentations.

    The order is a function of seed and epoch, so a resumed run goes on in the same order.

    Args:
        dataset: the data set; the config does not name it.
        shuffle: whether to shuffle.
        seed: seed of the order; the run's by default.
        round_up: whether to repeat images so that all processes get equally many; False where all are to be counted
            once, as in a test.
    """

    def __init__(self, dataset, shuffle: bool = True, seed: int | None = None, round_up: bool = True) -> None:
        super().__init__(dataset, shuffle, seed, round_up)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the order and of the augmentations."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch, self.seed)
