"""Which routing row the objects of an image belong to, and a table of experts by object size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import nn

from ..analysis.ground_truth import GroundTruth
from ..analysis.patches import patch_grid
from ..analysis.sizes import SIZE_NAMES
from ..analysis.slots import expert_name
from ..common.image_frame import Frame
from ..probing.regions import LEAST_OVERLAP
from ..routing.records import RoutingRecord
from ..routing.rows import patch_numbers

ANCHOR_SCALE = 4.0  # RetinaNet's smallest anchor has 4 strides' side; for heads without anchors
CAVEAT = (
    'Object size and pyramid level nearly coincide, so columns that differ may only mean that the gate recognises its '
    'level. Conclusions about size need the size report (moe-det report).'
)


@dataclass(frozen=True)
class ImageObjects:
    """The ground truths of an image, crowds left out.

    Attributes:
        areas: (g,) in original pixels, from the annotation.
        centres: (g, 2) x, y of the boxes in original pixels.
        categories: g names.
        boxes: (g, 4) x, y, width, height in original pixels.
    """

    areas: np.ndarray
    centres: np.ndarray
    categories: tuple[str, ...]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    @staticmethod
    def none() -> ImageObjects:
        """No objects."""
        return ImageObjects(np.zeros(0), np.zeros((0, 2)), ())


def read_objects(path: str) -> dict[Hashable, ImageObjects]:
    """Reads the ground truths of a COCO json by image, crowds left out.

    Raises:
        DataError: the file is not a COCO annotation file, has no objects, or an object has no ``area``.
    """
    truths = GroundTruth(path)
    names, objects = truths.category_names, truths.objects
    found = {}
    for position, image_id in enumerate(truths.image_ids):
        at = objects.of_image(position)
        boxes = objects.boxes[at]
        found[image_id] = ImageObjects(
            areas=objects.areas[at],
            centres=boxes[:, :2] + boxes[:, 2:] / 2,
            categories=tuple(names[category] for category in objects.categories[at]),
            boxes=boxes,
        )
    return found


def pyramid_of(model: nn.Module) -> tuple[list[float], float]:
    """Returns the strides of the detector's first head, finest first, and its smallest anchor scale."""
    for module in model.modules():
        generator = getattr(module, 'prior_generator', None)
        if generator is not None and hasattr(generator, 'strides'):
            strides = [float(stride[0] if isinstance(stride, Sequence) else stride) for stride in generator.strides]
            scales = getattr(generator, 'scales', None)
            return strides, float(min(scales)) if scales is not None else ANCHOR_SCALE
    return [], ANCHOR_SCALE


def weights_of_objects(
    records: Sequence[RoutingRecord],
    position: int,
    meta: Mapping,
    objects: ImageObjects,
    strides: Sequence[float],
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the routing row of each object of an image.

    Args:
        records: what one layer decided in the batch, one record per call, with images numbered by position.
        position: of the image in the batch.
        meta: of the image: ``batch_input_shape``, and what :class:`~moe_det.common.image_frame.Frame` reads.
        objects: its ground truths.
        strides: of the head's levels; for a layer with another number of levels those of its maps are taken.
        scale: smallest anchor side in strides.

    Returns:
        (g, E) mixture weights and (g,) levels.
    """
    columns = [torch.cat([getattr(record, key) for record in records]) for key in ('image_ids', 'levels', 'patches')]
    weights = torch.cat([record.weights for record in records]).double().numpy()
    row_of = {key: row for row, key in enumerate(zip(*(column.tolist() for column in columns), strict=True))}
    map_sizes = {level: size for record in records for level, size in record.map_sizes.items()}
    padded = np.array(meta['batch_input_shape'][::-1], dtype=float)  # x, y
    frame = Frame.of(meta)
    levels = np.zeros(len(objects.areas), dtype=int)
    if records[0].unit != 'image' and len(map_sizes) > 1:
        if len(strides) != len(map_sizes):
            strides = [padded[1] / map_sizes[level][0] for level in sorted(map_sizes)]
        sides = np.sqrt(np.maximum(objects.areas * frame.scale.prod(), 1e-6))
        distance = np.abs(np.log2(np.array(strides)[:, None] * scale / sides))
        levels = np.array(sorted(map_sizes))[distance.argmin(axis=0)]
    rows = []
    for level, centre in zip(levels.tolist(), frame.to_input(objects.centres) / padded, strict=True):
        patch = 0
        if records[0].unit == 'patch':
            height, width = map_sizes[level]
            grid = patch_grid(map_sizes[level], 1 + int(columns[2][columns[1] == level].max()))
            x, y = np.clip((centre * (width, height)).astype(int), 0, (width - 1, height - 1)).tolist()
            patch = int(patch_numbers(torch.tensor(y), torch.tensor(x), height, width, grid))
        rows.append(row_of[position, level, patch])
    return weights[np.array(rows, dtype=int)], levels


def weights_by_detection(
    records: Sequence[RoutingRecord], position: int, found: InstanceData, objects: ImageObjects
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the query or region of each object of an image: of the detection that overlaps it most, by half or more.

    Args:
        records: what one layer decided in the batch, with images numbered by position.
        position: of the image in the batch.
        found: its detections in original pixels, with the number ``anchor`` of what made each.
        objects: its ground truths.

    Returns:
        (m, E) mixture weights and the objects (m,) that they are of.
    """
    images, numbers = (torch.cat([getattr(record, key) for record in records]) for key in ('image_ids', 'patches'))
    weights = torch.cat([record.weights for record in records]).double().numpy()
    if not len(found) or not len(objects.boxes):
        return weights[:0], np.zeros(0, dtype=np.int64)
    boxes = torch.as_tensor(objects.boxes, dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    overlap, nearest = bbox_overlaps(boxes, found.bboxes.cpu().float()).max(dim=1)
    kept = torch.nonzero(overlap >= LEAST_OVERLAP).flatten()
    rows = torch.nonzero(images == position).flatten()
    row_of = torch.empty(int(numbers.max()) + 1, dtype=torch.long)
    row_of[numbers[rows]] = rows
    return weights[row_of[found.anchor.cpu()[nearest[kept]]].numpy()], kept.numpy()


def size_gap(mass: np.ndarray) -> float | None:
    """Total variation distance between the experts of small and of large objects; None without either.

    Args:
        mass: (E, 3) sums of weights.
    """
    small, large = mass[:, 0].sum(), mass[:, -1].sum()
    if not small or not large:
        return None
    return float(np.abs(mass[:, 0] / small - mass[:, -1] / large).sum() / 2)


def expert_size_table(
    mass: Mapping[str, np.ndarray],
    counts: np.ndarray,
    levels: Mapping[str, np.ndarray],
    slots: Mapping[str, int],
) -> str:
    """A plain-text table: per layer and expert the share of the weights of each size's objects.

    Args:
        mass: by layer (E, 3) sums of weights.
        counts: (3,) objects of each size.
        levels: by layer (L, 3) objects by level and size, for layers that see several levels.
        slots: by layer its shards; 1 without shards.
    """
    heads = [f'{name} ({number:.0f})' for name, number in zip(SIZE_NAMES, counts, strict=True)]
    heads.append(f'all ({counts.sum():.0f})')
    names = {
        name: [expert_name(expert, len(table), slots[name]) for expert in range(len(table))]
        for name, table in mass.items()
    }
    width = max(len(text) for name in mass for text in (name, 'expert 00', *names[name]))
    lines = [
        'Experts by object size: share of the gate weights that the ground truths (their number) of each size meet, at '
        'the level that fits their side, or of the query or region whose detection overlaps them most'
    ]
    lines.append(f'{"layer":{width}}  ' + '  '.join(f'{head:>14}' for head in heads))
    for name, table in mass.items():
        lines.append(name)
        table = np.column_stack([table, table.sum(1)])
        for expert, row in zip(names[name], table, strict=True):
            lines.append(f'{expert:>{width}}  ' + '  '.join(_percent(row, table.sum(0))))
    alike: dict[bytes, list[str]] = {}
    for name, table in levels.items():
        alike.setdefault(table.tobytes(), []).append(name)
    for same in alike.values():
        table = levels[same[0]]
        table = np.column_stack([table, table.sum(1)])
        lines.append(f'levels of the objects ({", ".join(same)})')
        for level, row in enumerate(table):
            lines.append(f'{f"level {level}":>{width}}  ' + '  '.join(_percent(row, table.sum(0))))
    return '\n'.join([*lines, CAVEAT])


def _percent(row: np.ndarray, totals: np.ndarray) -> list[str]:
    return [f'{value / total:>14.0%}' if total else f'{"-":>14}' for value, total in zip(row, totals, strict=False)]
