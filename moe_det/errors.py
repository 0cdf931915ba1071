"""User-facing errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoEDetError(Exception):
    """Base of the package's own errors: the message alone tells what to change."""


class StackError(MoEDetError, ImportError):
    """The installed packages do not fit together (missing mmdet, unmatched torch pair)."""


class MoEConfigError(MoEDetError, ValueError):
    """A config value that the package cannot build from; names the key, the value and what was expected."""


class DataError(MoEDetError, ValueError):
    """A data folder, annotation file or image that cannot be used; names the path."""


class CheckpointError(MoEDetError, ValueError):
    """A checkpoint that does not fit the config it is loaded into."""


class UncollectedConstraintError(MoEDetError, RuntimeError):
    """A layer's constraint was computed for a step but nobody added it to the losses."""


class NonFiniteError(MoEDetError, FloatingPointError):
    """A gate logit, loss or gradient became NaN or infinite; names the layer, the iteration and the images."""


def unknown_name(kind: str, name: object, known: Iterable[str], lister: str | None = None) -> str:
    """Returns one sentence that refuses ``name``, suggests a near one and lists the names that exist.

    Args:
        kind: of thing.
        name: that does not exist.
        known: names that exist.
        lister: the command that lists them where they are too many for a message.
    """
    known = sorted(known)
    if not known:
        return f'unknown {kind} {name!r}; none is registered'
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    if lister is not None:
        return f'unknown {kind} {name!r}.{hint} All names: {lister}'
    return f'unknown {kind} {name!r}; the names that exist are: {", ".join(known)}.{hint}'
