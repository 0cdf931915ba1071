"""How many classes a detector predicts, by its config."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError

_INNER = ('module', 'detector')  # of test-time augmentation and semi-supervised models
_HEADS = ('bbox_head', 'query_head', 'mask_head')


def check_outputs(where: str, path: str, labels: int, model: Mapping) -> None:
    """Checks that a model predicts as many classes as a file has labels.

    Args:
        where: the config key that names the file.
        path: the file.
        labels: their number.
        model: the config's ``model``.

    Raises:
        DataError: it predicts more or fewer; has the line that fixes it.
    """
    for key, outputs in class_outputs(model):
        if outputs != labels:
            less = outputs < labels
            why = 'the others could not be learned' if less else 'a prediction of another one would end the evaluation'
            raise DataError(
                f'{where}: {path} has {labels} of the classes of the config, but the model '
                f'predicts num_classes={outputs} ({key}): {why}; set\n'
                f'        {_nested(key, f"dict(num_classes={labels})")}'
            )


def class_outputs(model: Mapping, where: str = 'model') -> list[tuple[str, int]]:
    """Returns config key and value of every ``num_classes`` that counts the classes a detector predicts."""
    for key in _INNER:
        if isinstance(model.get(key), Mapping):
            return class_outputs(model[key], f'{where}.{key}')
    found = []
    for key in (*_HEADS, 'roi_head'):
        heads = model.get(key)
        for number, head in enumerate(heads if isinstance(heads, (list, tuple)) else [heads]):
            place = f'{where}.{key}' + (f'[{number}]' if isinstance(heads, (list, tuple)) else '')
            if not isinstance(head, Mapping):
                continue
            if key == 'roi_head':
                found += class_outputs(head, place)
            elif type(head.get('num_classes')) is int:
                found.append((place, head['num_classes']))
    return found


def _nested(key: str, inner: str) -> str:
    """``model.bbox_head`` and ``dict(...)`` as one line of a config."""
    first, *rest = key.split('.')
    for name in reversed(rest):
        inner = f'dict({name}={inner})' if '[' not in name else f'dict({name.partition("[")[0]}=[{inner}, ...])'
    return f'{first} = {inner}'
