"""Makes the synthetic shapes for a command, with progress and a summary."""

from __future__ import annotations

from typing import Any

from ..common.console import say
from ..common.software import cores
from ..datasets.shapes import ShapesSettings, make_shapes


def make_shapes_data(out: str, *, workers: int | None = None, overwrite: bool = False, **settings: Any) -> None:
    """Makes a data set of shapes unless it is there.

    Args:
        out: folder to make.
        workers: processes; one per core when None.
        overwrite: replaces shapes of other settings.
        **settings: of :class:`~moe_det.datasets.shapes.ShapesSettings`.

    Raises:
        DataError: the folder holds something else or cannot be written.
        MoEConfigError: a setting that cannot be.
    """
    made_of = ShapesSettings(**settings)
    try:
        made = make_shapes(out, made_of, overwrite=overwrite, workers=workers or cores(), progress=_tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'run the same command again to complete {out}') from None
    what = f'{made_of.train} training and {made_of.val} validation images of {made_of.size}x{made_of.size}'
    say(f'{out}: {what} {"made" if made else "are already there"}')


def _tell(done: int, total: int) -> None:
    step = max(1, total // 10)
    if done % step == 0 or done == total:
        say(f'  {done} of {total} images')
