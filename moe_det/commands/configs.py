"""Lists the configs that come with the package, or copies one with its bases."""

from __future__ import annotations

import argparse
import sys

from ..called import command
from ..errors import MoEConfigError
from ..packaged_configs import config_folder, config_names, config_title, copy_config


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='List the configs that come with the package, or copy one to change it.',
        epilog='Every command that takes a config takes their names.',
    )
    what = parser.add_subparsers(dest='what', required=True, metavar='list|copy')
    listing = what.add_parser('list', help='names of all configs, with what they are')
    listing.add_argument('words', nargs='*', metavar='WORD', help='only names that contain each of these')
    copying = what.add_parser('copy', help='copy a config with the bases that it needs')
    copying.add_argument('name', metavar='NAME', help='as in the list')
    copying.add_argument('--to', default='.', metavar='DIR', help='folder of the copy (default: this one)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error of the user's."""
    args = parse_args(argv, prog)
    if args.what == 'list':
        names = [name for name in config_names() if all(word in name for word in args.words)]
        if not names:
            print(f'error: no config in {config_folder()} has {" and ".join(args.words)} in its name', file=sys.stderr)
            return 2
        width = max(map(len, names))
        for name in names:
            print(f'{name:{width}}  {config_title(config_folder() / f"{name}.py")}')
        return 0
    try:
        entry, *bases = copy_config(args.name, args.to)
    except MoEConfigError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('\n'.join([str(entry), *(f'{base} (base)' for base in bases)]))
    print(f'Train it with:\n    {command("train", str(entry))}')
    return 0
