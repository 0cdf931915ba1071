"""Which images belong together: frames of a video, shots of a burst."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..analysis.coco_json import read_json
from ..errors import DataError


def image_groups(path: str, key: str, image_ids: Sequence[Hashable]) -> list[Hashable]:
    """Reads what a key of the json's images says of each image.

    Args:
        path: COCO json.
        key: of an image's entry, such as ``'video_id'``.
        image_ids: the images, in order.

    Returns:
        The group of each image.

    Raises:
        DataError: an image has no such key, or its value is not an integer and no text, or all images are one group.
    """
    entries = {entry['id']: entry for entry in read_json(path).get('images', [])}
    groups = [entries[image_id].get(key) for image_id in image_ids]
    wrong = [at for at, group in enumerate(groups) if isinstance(group, bool) or not isinstance(group, (int, str))]
    if wrong:
        entry = entries[image_ids[wrong[0]]]
        raise DataError(
            f'--groups {key}: {path}: {len(wrong)} of {len(groups)} images have no integer or text there, the first is '
            f'image {image_ids[wrong[0]]} with {entry.get(key)!r}; its keys are {", ".join(map(str, entry))}'
        )
    if len(set(groups)) < 2:
        raise DataError(f'--groups {key}: {path}: all {len(groups)} images are of one group ({groups[0]!r})')
    return groups
