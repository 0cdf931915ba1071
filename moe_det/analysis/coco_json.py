"""Reading the JSON of an annotation file, with errors that name the file and what is wrong with it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DataError


@contextmanager
def no_collection() -> Iterator[None]:
    """Halves the time of a large file: nothing in its millions of lists and dicts is garbage yet."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_json(path: str) -> Any:
    """Returns the parsed content of a JSON file.

    Raises:
        DataError: the file cannot be opened, is not text, is truncated or is not JSON; names the byte where it ends.
    """
    try:
        with no_collection(), open(path, encoding='utf-8') as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path}: expected JSON text, found binary data at byte {error.start}{_beginning(path)}'
        ) from error
    except json.JSONDecodeError as error:
        size = os.path.getsize(path)
        if size == 0:
            raise DataError(f'{path}: the file is empty, expected COCO annotations in JSON') from error
        offset = len(error.doc[: error.pos].encode())
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated string'):
            raise DataError(
                f'{path}: the file is truncated: it ends at byte {size} in the middle of its JSON (what is open there '
                f'began at byte {offset}). Copy or download it again'
            ) from error
        raise DataError(f'{path}: not JSON: {error.msg} at byte {offset} of {size}{_beginning(path)}') from error
    except RecursionError as error:
        raise DataError(f'{path}: not COCO annotations: its JSON is nested too deep to be read') from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f'{path}: the JSON cannot be read: {error}') from error
    except MemoryError as error:
        size = os.path.getsize(path)
        raise DataError(f'{path}: not enough memory to read its {size:,} bytes of JSON') from error


def _beginning(path: str) -> str:
    with open(path, 'rb') as file:
        return f'; the file begins with {file.read(40)!r}'


def source_of(content: dict) -> str | None:
    """What COCO annotations say of where the images are from: the description in ``info``, and the licences' names.

    Args:
        content: of the file.

    Returns:
        One line, or None if the file says nothing.
    """
    info, licences = content.get('info'), content.get('licenses')
    said = [info.get('description') if isinstance(info, dict) else None]
    said += [entry.get('name') for entry in licences if isinstance(entry, dict)] if isinstance(licences, list) else []
    return ', '.join(' '.join(str(one).split()) for one in dict.fromkeys(said) if one) or None
