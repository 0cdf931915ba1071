"""Runs a script with this package in place: ``python -m moe_det.run_script SCRIPT ARGUMENTS``.

mmdet's own tools import mmdet before they read the config that would import this package; without mmcv's compiled
operators they end there.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys


def main(argv: list[str] | None = None) -> None:
    """Runs the script as ``python SCRIPT ARGUMENTS`` would."""
    parser = argparse.ArgumentParser(prog='python -m moe_det.run_script', description="Run a script of mmdet's.")
    parser.add_argument('script', help='a Python file')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help="the script's own")
    args = parser.parse_args(argv)
    if not os.path.isfile(args.script):
        parser.error(f'{args.script}: no such file')
    sys.argv = [args.script, *args.arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))
    runpy.run_path(args.script, run_name='__main__')


if __name__ == '__main__':
    main()
