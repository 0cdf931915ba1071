"""Small pictures for the report: images with boxes coloured by size, and cut-outs of objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .palette import size_colour

IMAGE_SIDE = 320  # longest side of a thumbnail, pixels
OBJECT_SIDE = 200
_SMALLEST_OBJECT = 96  # small cut-outs are enlarged to this, or their content cannot be made out
_HALO = '#000000'
_QUALITY = 82


def draw_boxes(
    image: Image.Image | np.ndarray,
    boxes: Iterable[Sequence[float]],
    sizes: Iterable[int],
    *,
    longest: int = IMAGE_SIDE,
    line: int = 3,
) -> Image.Image:
    """A thumbnail of an image with boxes in the colours of their sizes.

    Args:
        image: PIL image, or array (H, W) or (H, W, 3), RGB, uint8.
        boxes: ``x, y, width, height`` in pixels of ``image``, as in COCO.
        sizes: index of each box's size class, 0 the smallest.
        longest: longest side of the result at most; images are never enlarged.
        line: width of the lines in pixels of the result; each has a dark rim.

    Raises:
        ValueError: there are not as many sizes as boxes.
    """
    picture = _rgb(image)
    scale = min(1.0, longest / max(picture.size))
    picture = picture.resize(_scaled(picture.size, scale), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    marked = [(box, size) for box, size in zip(boxes, sizes, strict=True)]
    # the largest first, so that no small box disappears below a large one
    for box, size in sorted(marked, key=lambda pair: -pair[0][2] * pair[0][3]):
        _outline(draw, [value * scale for value in box], size_colour(size), line)
    return picture


def crop_object(
    image: Image.Image | np.ndarray,
    bbox: Sequence[float],
    context: float = 0.6,
    *,
    size: int | None = None,
    longest: int = OBJECT_SIDE,
) -> Image.Image:
    """A square cut-out around an object; what lies outside the image is grey.

    Args:
        image: as for :func:`draw_boxes`.
        bbox: ``x, y, width, height`` in pixels of ``image``; parts outside the image are allowed.
        context: space on every side, in units of the box's longer side.
        size: index of the object's size class; if given, the box is outlined in its colour.
        longest: side of the result at most; small cut-outs are enlarged to make their content visible.
    """
    picture = _rgb(image)
    x, y, width, height = (float(value) for value in bbox)
    width, height = max(width, 1.0), max(height, 1.0)
    side = max(width, height) * (1 + 2 * context)
    left, top = x + width / 2 - side / 2, y + height / 2 - side / 2
    edge = max(1, round(side))
    corner = (round(left), round(top))
    cut = Image.new('RGB', (edge, edge), '#808080')
    ends = (min(corner[0] + edge, picture.width), min(corner[1] + edge, picture.height))
    window = (max(corner[0], 0), max(corner[1], 0), *ends)
    if window[0] < window[2] and window[1] < window[3]:
        cut.paste(picture.crop(window), (window[0] - corner[0], window[1] - corner[1]))
    target = min(longest, max(edge, _SMALLEST_OBJECT))
    scale = target / edge
    cut = cut.resize((target, target), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    if size is not None:
        box = [(x - corner[0]) * scale, (y - corner[1]) * scale, width * scale, height * scale]
        _outline(ImageDraw.Draw(cut), box, size_colour(size), 3)
    return cut


class Pictures:
    """The pictures that belong to one analysis, as files below its folder.

    Args:
        out_dir: folder of the results; the pictures lie in its ``pictures/``.
    """

    def __init__(self, out_dir: Path | str) -> None:
        self.out_dir = Path(out_dir)

    def save(self, name: str, picture: Image.Image) -> str:
        """Writes a picture as JPEG.

        Args:
            name: unique name without ending, such as ``image-17``. A name with unusual characters gets a hash
                instead of them, so that different names stay different.
            picture: what :func:`draw_boxes` or :func:`crop_object` returned.

        Returns:
            path relative to the folder of the results, with forward slashes: what the results hold.
        """
        plain = re.sub('[^A-Za-z0-9_-]+', '_', name)
        if plain != name:
            plain += '-' + hashlib.sha256(name.encode()).hexdigest()[:8]
        relative = f'pictures/{plain}.jpg'
        path = self.out_dir / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=_QUALITY, optimize=True)
        return relative

    def open(self, relative: str | None) -> Image.Image | None:
        """A picture that the results name; None if it is missing, unreadable or outside the folder."""
        path = self.path(relative)
        if path is None:
            return None
        try:
            with Image.open(path) as picture:
                return picture.convert('RGB')
        except OSError:
            return None

    def path(self, relative: str | None) -> Path | None:
        """The file behind a path of the results; None if there is none inside the folder."""
        if not relative:
            return None
        root = self.out_dir.resolve()
        path = (root / relative).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    return image.convert('RGB')


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: str, line: int) -> None:
    """A box's outline with a dark rim; boxes smaller than the lines grow so that they stay visible."""
    x, y, width, height = box
    grow_x, grow_y = (max(0.0, 2 * line + 2 - extent) / 2 for extent in (width, height))
    corners = [round(x - grow_x), round(y - grow_y), round(x + width + grow_x), round(y + height + grow_y)]
    rim = [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1]
    draw.rectangle(rim, outline=_HALO, width=1)
    draw.rectangle(corners, outline=colour, width=line)
