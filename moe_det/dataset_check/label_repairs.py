"""Lines for the user to paste: into a config that names other classes than the data, or into Python to fix a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_INDENT = '        '


def config_lines(names: Sequence[str], outputs: int | None) -> str:
    """The lines of a config that set class names in their order and, where it is given, the model's number of them."""
    listed = ', '.join(repr(name) for name in names) + (',' if len(names) == 1 else '')
    lines = [f'metainfo=dict(classes=({listed}))  # in every dataset']
    if outputs is not None:
        lines.append(f'bbox_head=dict(num_classes={outputs})  # in the model')
    return '\n'.join(_INDENT + line for line in lines)


def file_lines(path: str, ids: Sequence, names: Sequence[str], renamed: Mapping[str, str] | None = None) -> str:
    """Lines of Python that give an annotation file the categories ``names`` first, in this order.

    Those that the file lacks get new ids, and categories that are not among ``names`` come last.

    Args:
        path: the file, which the lines replace.
        ids: its category ids.
        names: the categories that it should have.
        renamed: categories that only have another name in it: old name to new.
    """
    new = 'name' if any(isinstance(ident, str) for ident in ids) else f'{1 + max([0, *map(int, ids)])} + n'
    lines = [
        'import json',
        f'path, names = {path!r}, {list(names)!r}',
        "data = json.load(open(path, encoding='utf-8'))",
        f'known = {{{dict(renamed)!r}.get(c["name"], c["name"]): c for c in data["categories"]}}'
        if renamed
        else 'known = {c["name"]: c for c in data["categories"]}',
        f'first = [dict(known.pop(name, dict(id={new})), name=name) for n, name in enumerate(names)]',
        'data["categories"] = first + list(known.values())',
        "json.dump(data, open(path, 'w', encoding='utf-8'))",
    ]
    return '\n'.join(_INDENT + line for line in lines)
