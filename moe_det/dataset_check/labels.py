"""Which label stands for which class: compared across config, annotation files, checkpoint and the model's outputs.

A label is a number that mmdet gives a category of an annotation file: ``CocoDataset`` counts those of its categories
that the config names, in the order of the file, whatever the order in the config. So two files whose categories are
ordered otherwise, or one that lacks a category, share no labels; and the names that a config or a checkpoint lists are
those of the labels only if they have the order of the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..common.console import near, warn
from ..errors import DataError
from .class_outputs import check_outputs
from .dataset_paths import short
from .label_repairs import config_lines, file_lines


@dataclass(frozen=True)
class Labels:
    """The labels of one annotation file.

    Attributes:
        where: the config key that names the file.
        path: the file.
        classes: names that the config asks for.
        categories: names of the file's categories, in its order.
        category_ids: their ids.
        scored: predictions are compared with the file.
        closed: the model's outputs are these classes; not so where it reads the names as a text.
    """

    where: str
    path: str
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    category_ids: tuple
    scored: bool
    closed: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The name of label 0, 1, ..."""
        wanted = set(self.classes)
        return tuple(name for name in self.categories if name in wanted)

    @property
    def absent(self) -> list[str]:
        """Classes of the config that the file lacks."""
        return [name for name in self.classes if name not in set(self.categories)]

    @property
    def ignored(self) -> list[str]:
        """Categories of the file that the config does not name."""
        return [name for name in self.categories if name not in set(self.classes)]


def config_classes(where: str, dataset: Mapping, kind: type | None) -> tuple[str, ...] | None:
    """Returns the class names of a data set's config; None where it has none.

    Raises:
        DataError: they are not a list of different texts.
    """
    classes = (dataset.get('metainfo') or {}).get('classes', getattr(kind, 'METAINFO', {}).get('classes'))
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise DataError(
                f"{where}.metainfo: classes={classes!r} is a text, expected a tuple: one class alone is ('name',)"
            )
        with open(classes, encoding='utf-8') as lines:
            classes = lines.read().splitlines()
    if classes is None:
        return None
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise DataError(f'{where}.metainfo: classes={classes!r}: expected a tuple of texts')
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise DataError(f'{where}.metainfo: classes names {short(quoted(twice))} twice')
    return tuple(classes)


def check_labels(files: Sequence[Labels], model: Mapping | None = None) -> tuple[str, ...]:
    """Compares the labels of annotation files with each other, with the config's classes and the model's outputs.

    Args:
        files: at least one.
        model: the config's ``model``.

    Returns:
        The name of label 0, 1, ... in all of them.

    Raises:
        DataError: a class has two labels, or has none, or the model predicts another number of classes; names files
            and classes, and has the lines that fix it.
    """
    for labels in files:
        _check_common(labels)
    most = max(files, key=lambda labels: len(labels.names))
    for labels in files:
        _check_misspelt(labels, files)
    for labels in files:
        _compare(labels, most)
    if most.absent:
        raise DataError(
            f'{most.where}: {most.path} has no category {short(quoted(most.absent))}, which the config names '
            f'as {_few(most.absent, "a class", "classes")}: labels are given to the categories of the file alone'
            f'{_shifted(most.classes, most.names)}\n'
            f'    either leave {_few(most.absent, "it", "them")} out:\n{config_lines(most.names, len(most.names))}\n'
            f'    or give the file {_few(most.absent, "that category", "those categories")}, in Python:\n'
            f'{file_lines(most.path, most.category_ids, most.classes)}'
        )
    if most.closed:
        check_outputs(most.where, most.path, len(most.names), model or {})
    return most.names


def _check_common(labels: Labels) -> None:
    if not labels.names:
        raise DataError(
            f'{labels.where}: the config and the annotation file have no class in common.\n'
            f'    classes of the config: {short(quoted(labels.classes))}\n'
            f'    categories of {labels.path}: {short(quoted(labels.categories))}\n'
            f'    set the classes of the file:\n{config_lines(labels.categories, len(labels.categories))}'
        )
    if labels.ignored and not labels.absent:
        warn(
            f'{labels.where}: {len(labels.ignored)} of {len(labels.categories)} categories of {labels.path} are not '
            f'among the classes of the config and are ignored: {short(quoted(labels.ignored))}'
        )


def _check_misspelt(labels: Labels, files: Sequence[Labels]) -> None:
    """Classes without a category and categories without a class: probably misspelt, else objects would be lost."""
    if not (labels.absent and labels.ignored):
        return
    hints = ''.join(f'\n    {name!r}:{hint}' for name in labels.absent if (hint := near(name, labels.ignored, 1)))
    meant = {match: name for name in labels.absent for match in difflib.get_close_matches(name, labels.ignored, n=1)}
    text = (
        f'{labels.where}: {labels.path} has no category {short(quoted(labels.absent))}, which the config names '
        f'as {_few(labels.absent, "a class", "classes")}, and its {short(quoted(labels.ignored))} would be '
        f'ignored{_shifted(labels.classes, labels.names)}{hints}\n'
    )
    if any(set(labels.absent) <= set(other.categories) for other in files):
        lines = file_lines(labels.path, labels.category_ids, labels.classes, meant)
        raise DataError(f'{text}    another file has those classes; give this one its categories, in Python:\n{lines}')
    wanted = {*labels.names, *meant} if len(meant) == len(labels.absent) else set(labels.categories)
    names = [name for name in labels.categories if name in wanted]
    raise DataError(f'{text}    set the classes of the file:\n{config_lines(names, len(names))}')


def _compare(labels: Labels, most: Labels) -> None:
    names = labels.names
    if names == most.names:
        return
    if names == most.names[: len(names)] and not labels.scored:
        warn(f'{labels.where}: {labels.path} lacks the last of the classes: {short(quoted(most.names[len(names) :]))}')
        return
    listed = [
        f'\n        label {number}: {label_name(names, number)} here, {label_name(most.names, number)} there'
        for number in range(len(most.names))
        if label_name(names, number) != label_name(most.names, number)
    ]
    more = f'\n        and {len(listed) - 8} more' if len(listed) > 8 else ''
    also = ''
    if set(labels.classes) != set(most.classes):
        also = f'    give both data sets the same classes:\n{config_lines(most.classes, None)}\n'
    raise DataError(
        f'{labels.where}: {labels.path} gives its classes other labels than {most.path} ({most.where}); labels count '
        f'the categories in the order of each file:{"".join(listed[:8])}{more}\n{also}'
        f'    give the first file the categories of the second, in Python:\n'
        f'{file_lines(labels.path, labels.category_ids, most.names)}'
    )


def label_name(names: Sequence[str], number: int) -> str:
    """The name of a label for a message."""
    return repr(names[number]) if number < len(names) else 'none'


def quoted(names: Sequence[str]) -> list[str]:
    """Names for a message: some contain spaces and commas."""
    return [repr(name) for name in names]


def _few(items: Sequence, one: str, many: str) -> str:
    return one if len(items) == 1 else many


def moved_names(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The names that both have, in other places."""
    return [name for name in after if name in before and before.index(name) != after.index(name)]


def _shifted(classes: Sequence[str], names: Sequence[str]) -> str:
    """Says how the labels of a file differ from the places in the config, if they do."""
    moved = moved_names(classes, names)
    if not moved:
        return ''
    name = moved[0]
    return f'; {name!r}, the {classes.index(name)} of the config, is label {names.index(name)}'
