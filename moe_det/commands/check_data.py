"""Checks a data set in COCO's format: annotation file and images, with every problem by file and id."""

from __future__ import annotations

import argparse

from .arguments import add_changes, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Check the annotation files and images of a config, or one annotation file.',
        epilog='Exit status: 0 no errors, 1 errors were found (with --strict, or notes), 2 the check could not run.',
    )
    parser.add_argument('source', metavar='CONFIG|ANN_FILE.json', help='config, or annotation file in COCO format')
    parser.add_argument('--images', metavar='DIR', help='the images of an annotation file; a config names its own')
    parser.add_argument(
        '--decode', action='store_true', help='decode every image (default: headers, and whatever looks suspicious)'
    )
    parser.add_argument(
        '--workers',
        type=whole_number(0),
        metavar='N',
        help='processes that look at images (default: one per core, at most 8)',
    )
    parser.add_argument('--strict', action='store_true', help='notes, which mmdet copes with, count as problems too')
    parser.add_argument(
        '--examples',
        type=whole_number(0),
        default=3,
        metavar='N',
        help='entries shown of each kind (default: %(default)s)',
    )
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the full report, with every entry')
    add_changes(parser, device=False)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.dataset_check.thorough:check_dataset', unexpected=2)
