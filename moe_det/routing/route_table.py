"""Decisions that are replayed instead of the gate's: those of the same rows, of other images or of other levels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class RouteTable:
    """A decision for every routing row of one layer, handed out batch by batch.

    Rows are named as :class:`~moe_det.routing.records.RoutingRecorder` names them: by image, level (counted over the
    calls of a batch where a layer is called once per level) and patch.

    Example:
        >>> table = RouteTable(weights, image_ids, levels, patches)
        >>> with intervene(model, {layer: Intervention(routes=table)}):
        ...     table.start_batch([0, 1])  # before every forward
        ...     model.test_step(batch)

    Args:
        weights: (R, E) mixture weights, 0 for experts that do not run.
        image_ids: (R,) integer that names each row's image.
        levels: (R,) level of each row.
        patches: (R,) patch of each row.
        slots: groups of experts of which a row runs one each; with several, choices come in their order, else by
            weight.

    Raises:
        ValueError: two rows of the same image, level and patch.
    """

    def __init__(
        self, weights: np.ndarray, image_ids: np.ndarray, levels: np.ndarray, patches: np.ndarray, slots: int = 1
    ) -> None:
        self.slots = slots
        self._weights = np.asarray(weights)
        self._decisions: np.ndarray | None = None  # row whose decision each row has; None: its own
        keys = np.stack([image_ids, levels, patches], axis=1)
        order = np.lexsort((patches, levels, image_ids))
        if len(order) > 1 and (keys[order[1:]] == keys[order[:-1]]).all(axis=1).any():
            raise ValueError('two rows of the same image, level and patch: which of them decides?')
        names, first = np.unique(np.asarray(image_ids)[order], return_index=True)
        self._rows_of = dict(zip(names.tolist(), np.split(order, first[1:]), strict=True))
        self._levels, self._patches = np.asarray(levels), np.asarray(patches)
        self._queue: np.ndarray | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self._weights.shape[1]

    def taking(self, rows: np.ndarray) -> RouteTable:
        """The same table in which row r has the decision of row ``rows[r]``; ``rows`` is (R,)."""
        other = object.__new__(RouteTable)
        other.__dict__.update(self.__dict__, _decisions=np.asarray(rows), _queue=None)
        return other

    def start_batch(self, image_ids: Iterable[int]) -> None:
        """Names the images of the next forward, in order.

        Raises:
            KeyError: an image without rows.
        """
        rows = [self._rows_of[int(image_id)] for image_id in image_ids]
        place = np.repeat(np.arange(len(rows)), [len(of_image) for of_image in rows])
        joined = np.concatenate(rows)
        # a layer's calls go level by level, in each call image by image, then patch by patch
        joined = joined[np.lexsort((self._patches[joined], place, self._levels[joined]))]
        self._queue = joined if self._decisions is None else self._decisions[joined]

    def next_call(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The decisions of the next rows.

        Args:
            logits: (R, E) logits that the layer's gate has given the rows of this call; they tell how many there are.

        Returns:
            Indices (R, K), best first or in the order of slots, and log-weights (R, K); E and -inf where a row has
            fewer experts than another.

        Raises:
            ValueError: the batch was not started, or has more rows than its images have in the table.
        """
        count, num_experts = logits.shape
        if self._queue is None or len(self._queue) < count:
            left = 'start_batch() named no images' if self._queue is None else f'{len(self._queue)} are left'
            raise ValueError(f'the layer asks for {count} decisions, {left}: other images, or of another size?')
        rows, self._queue = self._queue[:count], self._queue[count:]
        weights = torch.from_numpy(self._weights[rows]).to(logits)
        top_k = max(1, int((self._weights[rows] > 0).sum(axis=1).max(initial=0)))
        keys = weights if self.slots == 1 else (weights > 0).byte()  # a stable sort: in the order of slots
        indices = torch.sort(keys, dim=1, descending=True, stable=True).indices[:, :top_k]
        weights = weights.gather(1, indices)
        return indices.masked_fill(weights <= 0, num_experts), weights.log()
