"""The kinds of problems that the check knows, and the report that counts and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# wider values are not pixels: in fp32 they end in infinite losses
LARGEST_NUMBER = 1e7


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        error: training would fail or learn something wrong; else a note: mmdet copes with it as ``what`` says.
        what: one phrase for the report.
    """

    error: bool
    what: str


KINDS = {
    # the file and its entries
    'unreadable_json': Kind(True, 'the file is not a COCO annotation file'),
    'not_an_object': Kind(True, 'an entry is not a JSON object'),
    'missing_key': Kind(True, 'an entry lacks a key that mmdet reads'),
    'bad_mark': Kind(True, "a mark is neither 0 nor 1: any text, '0' too, counts as true"),
    'number_as_text': Kind(True, 'a number is written as a text'),
    'not_a_number': Kind(True, 'something else stands where a number is expected'),
    'non_finite': Kind(True, f'a number is NaN, infinite or beyond {LARGEST_NUMBER:.0e}'),
    'bad_box': Kind(True, 'a box is not a list of four numbers [x, y, width, height]'),
    'bad_id': Kind(True, 'an id is neither an integer nor a text'),
    'id_type': Kind(True, 'an id is a text where the entry that it names has a number, or the other way round'),
    'bad_name': Kind(True, 'a name is not text, or empty'),
    'bad_image_size': Kind(True, "an image's width or height is not positive"),
    'duplicate_image_id': Kind(True, 'two images have one id: all but the last are lost'),
    'duplicate_annotation_id': Kind(True, 'two annotations have one id: mmdet refuses the file'),
    'duplicate_category_id': Kind(True, 'two categories have one id'),
    'duplicate_category_name': Kind(True, 'two categories have one name: mmdet counts one class too many'),
    'negative_area': Kind(True, "an annotation's area is negative: no size is that small"),
    'unknown_category': Kind(True, 'an annotation has a category that the file does not list: it becomes background'),
    'corner_boxes': Kind(True, 'the boxes look like corners [x1, y1, x2, y2]; COCO has [x, y, width, height]'),
    'lost_ids': Kind(
        True, 'ids are of several types or sizes: the evaluation, which makes one of them, fails or loses some'
    ),
    'centre_boxes': Kind(
        True, 'the boxes look like [centre x, centre y, width, height]; COCO has [x, y, width, height]'
    ),
    'nothing_usable': Kind(True, 'mmdet would leave out every annotation'),
    'only_crowds': Kind(True, 'nothing to learn and nothing to score: every annotation is a crowd (iscrowd=1)'),
    'no_iscrowd': Kind(False, "an annotation has no 'iscrowd', or null; it is read as 0"),
    'zero_id': Kind(False, "an annotation's id is 0, pycocotools' sign of no match; ids are renumbered when read"),
    'ignored': Kind(False, "an annotation is marked 'ignore'; ignored in training, counted in evaluation"),
    'text_id': Kind(False, "ids are texts; mmdet takes them, tools that expect COCO's integers do not"),
    'duplicate_file': Kind(False, 'two images are one file'),
    'orphan_annotation': Kind(False, 'an annotation belongs to no image of the file; it is left out'),
    'negative_box': Kind(False, 'a box has a negative width or height; ignored in training, counted in evaluation'),
    'zero_box': Kind(False, 'a box has no width or no height; ignored in training, counted in evaluation'),
    'tiny_box': Kind(False, 'a box is narrower than a pixel; ignored in training, counted in evaluation'),
    'no_area': Kind(False, "an annotation's area is 0; ignored in training, counted in evaluation"),
    'outside_image': Kind(False, 'a box lies outside its image; ignored in training, counted in evaluation'),
    'partly_outside': Kind(False, 'a box reaches more than a pixel beyond its image; it is kept as it is'),
    # the images
    'missing_image': Kind(True, 'an image file does not exist'),
    'unreadable_file': Kind(True, 'an image file cannot be opened'),
    'empty_image': Kind(True, 'an image file is empty'),
    'truncated_image': Kind(True, 'an image file is truncated'),
    'undecodable_image': Kind(True, 'a file cannot be decoded as an image'),
    'image_size': Kind(True, 'an image has another size than the file says: its boxes may be of another scale'),
    'exif_rotated': Kind(True, "an image is turned by its EXIF orientation when read, the file's size is unturned"),
    'exif': Kind(False, 'an image is turned by its EXIF orientation when read; boxes must be those of the turned one'),
    'cmyk': Kind(False, 'an image is CMYK; it is converted'),
    'deep': Kind(False, 'an image has 16 bits per channel; the upper 8 are used'),
    'greyscale': Kind(False, 'an image is grey; it becomes three equal channels'),
}

# the images that training cannot read at all
BROKEN_IMAGE = ('missing_image', 'unreadable_file', 'empty_image', 'truncated_image', 'undecodable_image')


def shown(value: object, limit: int = 60) -> str:
    """Returns ``value`` for a message: one line, printable, at most ``limit`` characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; integers of thousands of digits
        text = f'a {type(value).__name__}'
    return text if len(text) <= limit else text[: limit - 3] + '...'


@dataclass(frozen=True)
class Example:
    """One entry with a problem: its place in the file, its id, its image's file name, and what is wrong with it."""

    where: str
    id: object
    file: str | None
    detail: str

    def __str__(self) -> str:
        """One line."""
        named = '' if self.id is None else f' (id {shown(self.id)})'
        image = '' if self.file is None else f', image {shown(self.file, 200)}'
        return f'{self.where}{named}{image}: {self.detail}'.lstrip(' ,:')


class Report:
    """What a check found, by kind.

    Args:
        keep: examples kept of each kind; None keeps all.
    """

    def __init__(self, keep: int | None = 5) -> None:
        self.keep = keep
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Example]] = {}

    def add(self, kind: str, where: str, detail: str, id: object = None, file: object = None) -> None:
        """Counts a problem of ``kind`` (a key of ``KINDS``)."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if self.keep is None or len(examples) < self.keep:
            examples.append(Example(where, id, file if isinstance(file, str) else None, detail))

    def kinds(self, errors: bool) -> list[str]:
        """Returns the kinds of errors, or of notes, that were found, in the order of ``KINDS``."""
        return [kind for kind in KINDS if kind in self.counts and KINDS[kind].error is errors]

    def total(self, errors: bool) -> int:
        """Returns the number of errors, or of notes."""
        return sum(self.counts[kind] for kind in self.kinds(errors))

    def lines(self, errors: bool, examples: int = 3) -> Iterator[str]:
        """Yields for every kind a line with its count, and below it the first examples."""
        for kind in self.kinds(errors):
            count, shown_examples = self.counts[kind], self.examples[kind][:examples]
            yield f'{count:,} x {KINDS[kind].what} [{kind}]'
            for example in shown_examples:
                yield f'    {example}'
            if shown_examples and count > len(shown_examples):
                yield f'    and {count - len(shown_examples):,} more'

    def as_list(self) -> list[dict]:
        """Returns the report for JSON: per kind its severity, count and the kept examples."""
        return [
            {
                'kind': kind,
                'severity': 'error' if errors else 'note',
                'what': KINDS[kind].what,
                'count': self.counts[kind],
                'entries': [
                    {
                        'where': example.where,
                        'id': example.id if type(example.id) in (int, str) else example.id and shown(example.id),
                        'file': example.file,
                        'detail': example.detail,
                    }
                    for example in self.examples[kind]
                ],
            }
            for errors in (True, False)
            for kind in self.kinds(errors)
        ]
