"""Clusters the training images by a trained backbone's features, for experts that have an image cluster each."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, file_name, whole_number
from .start import main_of


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Cluster the training images by the features of a backbone, and write the file that ClusterMask reads.',
        config='config file of a trained model, as a rule without experts',
        checkpoint='checkpoint file or URL',
    )
    parser.add_argument('out', type=file_name('.json'), metavar='OUT.json', help='file of clusters')
    parser.add_argument(
        '--clusters', type=whole_number(2), default=4, metavar='C', help='number of clusters (default: %(default)s)'
    )
    parser.add_argument('--limit', type=whole_number(1), metavar='N', help='the first N images (default: all)')
    parser.add_argument('--seed', type=whole_number(0), default=0, help='seed of the clustering')
    add_changes(parser)
    return parser.parse_args(argv)


main = main_of(parse_args, 'moe_det.studies.image_clusters:cluster_images')
