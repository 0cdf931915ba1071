"""Exports a network with all of its experts to ONNX: image -> class logits and box deltas of every level."""

from __future__ import annotations

import argparse

from .arguments import add_changes, command_parser, whole_number
from .start import run


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line; nothing heavy is imported before, so that --help and mistakes answer at once."""
    parser = command_parser(
        prog,
        'Export a network to ONNX with every expert in the graph, count the experts and compare the '
        'outputs in onnxruntime.',
        'The input is the normalised and padded image; boxes are not selected. Needs the package onnx, and '
        'onnxruntime for the comparison.',
        config='config of a single-stage detector or a classifier',
        checkpoint='its checkpoint, file or URL',
    )
    parser.add_argument('out', metavar='OUT.onnx', help='file to write')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=whole_number(1),
        default=(800, 1344),
        metavar=('H', 'W'),
        help='size of the image (800 1344)',
    )
    parser.add_argument(
        '--batch', type=whole_number(1), default=1, metavar='N', help='number of images (default: %(default)s)'
    )
    add_changes(parser, data=False, device=False)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    arguments = {**vars(args), 'shape': tuple(args.shape)}
    return run('moe_det.converters.onnx_export:export_onnx', **arguments)
