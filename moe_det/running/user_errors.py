"""One readable message in place of a traceback, for errors that the user can fix."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any
from urllib.error import URLError

from mmengine.registry import Registry

from ..common.console import near, rank
from ..errors import MoEDetError

USER_ERROR = 2
INTERRUPTED = 130

_UNREGISTERED = re.compile(r'(\S+) is not in the (\S*?)(?:::)?([\w ]+) registry')
_MISSING_KEYWORD = re.compile(r'missing \d+ required [\w -]*arguments?: (.+)')
_UNEXPECTED_KEYWORD = re.compile(r"got an unexpected keyword argument '(\w+)'")


def user_message(error: BaseException) -> str | None:
    """Returns the message of an error that the user can fix, or None for anything that deserves a traceback.

    mmengine and torch wrap exceptions: registries and importers raise a new one from the old one, and data loaders
    re-raise a worker's exception with its whole traceback as the message. The original message is what helps.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, MoEDetError):
            return _without_worker_traceback(current)
        outer, current = current, current.__cause__ or current.__context__
        implicit = outer.__cause__ is None
        if implicit and (outer.__suppress_context__ or current is None or str(current) not in str(outer)):
            break  # a bug that happened while an error was handled is not a wrapper of that error
    if isinstance(error, KeyError):
        return _unregistered_name(error)
    if isinstance(error, TypeError):
        return _misfit(error)
    if isinstance(error, pickle.UnpicklingError):
        return (
            'a checkpoint of the config holds objects that are not loaded because they could run code (weights_only): '
            f'{" ".join(str(error).split())[:200]}'
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f'{error.filename or "a file of the run"} cannot be written: {error.strerror}. Checkpoints saved before '
            'are untouched: make room and run the same command with --resume'
        )
    if isinstance(error, URLError):
        return (
            f'a download failed: {getattr(error, "reason", error)}. The config names weights by URL (torchvision://, '
            'open-mmlab:// or https://): download the file where there is a network and name its path instead, or '
            'switch pretrained weights off, for example with --cfg-options model.backbone.init_cfg=None'
        )
    return None


def _without_worker_traceback(error: BaseException) -> str:
    text = str(error)
    if 'Original Traceback (most recent call last)' in text:
        text = text.rpartition(f'{type(error).__name__}: ')[2].rstrip()
    return text


def _unregistered_name(error: KeyError) -> str | None:
    """Rewrites mmengine's message on a type that no registry knows, with the names that resemble it."""
    match = _UNREGISTERED.match(str(error.args[0])) if error.args else None
    if match is None:
        return None
    name, scope, kind = match.groups()
    from mmdet import registry as mmdet_registry

    from .. import registry as moe_registry

    known: set[str] = set()
    for module in (mmdet_registry, moe_registry):
        for registry in vars(module).values():
            if isinstance(registry, Registry) and registry.name == kind:
                known.update(registry.module_dict, registry.parent.module_dict if registry.parent else ())
    return (
        f"type '{name}' in the config: no {kind} of that name is registered"
        f'{f" in {scope}" if scope else ""}.{near(name, known)} A class of your own needs its module in the config: '
        "custom_imports = dict(imports=['moe_det', 'your_module'], allow_failed_imports=False)"
    )


def _misfit(error: TypeError) -> str | None:
    """Rewrites Python's message on keys of the config that the built class does not take, or lacks."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    builds = [frame for frame in frames if frame.f_code.co_name == 'build_from_cfg']
    if not builds:
        return None
    settings, built = builds[-1].f_locals.get('args'), builds[-1].f_locals.get('obj_cls')
    if not isinstance(settings, dict) or not isinstance(built, type):
        return None
    match = _UNEXPECTED_KEYWORD.search(str(error))
    if match is not None and match[1] in settings:  # else code passed that keyword, not the config
        classes: Sequence[Any] = built.__mro__
        known = {name for cls in classes for name in inspect.signature(cls.__init__).parameters} - {'self'}
        hint = near(match[1], known)
        return f"the config gives type='{built.__name__}' the key {match[1]!r}, which it does not take.{hint}"
    match = _MISSING_KEYWORD.search(str(error))
    if match is not None and frames[-1] is builds[-1]:
        return f"the config does not give type='{built.__name__}' what it needs: {match[1]}"
    return None


def run_main(main: Callable[[], int | None]) -> int:
    """Runs a tool and turns the errors that a user can fix into one message.

    Args:
        main: does the work; what it returns is the exit status, None counts as 0.

    Returns:
        int: the exit status: ``main``'s own, 2 after an error of the user's, 130 after Ctrl-C.

    Raises:
        Exception: any other error as it is; with ``MOE_DET_TRACEBACK=1`` in the environment, every error.
    """
    try:
        return main() or 0
    except KeyboardInterrupt as interrupt:
        if os.environ.get('MOE_DET_TRACEBACK', '') not in ('', '0'):
            raise
        if rank() == 0:
            print(f'\ninterrupted. {interrupt}'.rstrip(), file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get('MOE_DET_TRACEBACK', '') not in ('', '0'):
            raise
        prefix = 'error: '
        if rank() != 0:
            # the launcher ends the others as soon as one rank is gone: an error that all ranks share is printed once
            time.sleep(5)
            prefix = f'error on rank {rank()}: '
        print(prefix + message, file=sys.stderr, flush=True)
        return USER_ERROR
