"""Runs a model again on changed images, as far as its routers' decisions, and matches the rows of both runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import MoEConfigError
from .router import Router
from .rows import UNITS, RowLayout


def comparable_routers(routers: Mapping[str, Router]) -> dict[str, Router]:
    """The routers whose rows lie in the image, so that those of a changed image can be matched, by path.

    Raises:
        MoEConfigError: there is none.
    """
    found = {name: router for name, router in routers.items() if router.unit in UNITS}
    if not found:
        units = ', '.join(f'{name} has {router.unit!r}' for name, router in routers.items()) or 'no layer has a gate'
        raise MoEConfigError(
            f'rows of images and of changed images can be compared for the units {", ".join(UNITS)}: {units}'
        )
    return found


class _AllDecidedError(Exception):
    """Ends a forward whose decisions are known."""


def run_until_decided(run: Callable[[], object], routers: Mapping[str, Router], calls: Mapping[str, int]) -> None:
    """Runs a forward and ends it when every router has decided so often; experts behind the last gate do not run.

    Nothing of it belongs to a training step: the routers decide as in evaluation, without noise.

    Args:
        run: the forward.
        routers: all of the model, by path.
        calls: how often each of those that matter decides.
    """
    left = dict(calls)

    def count(name: str) -> None:
        left[name] -= 1
        if not any(number > 0 for number in left.values()):
            raise _AllDecidedError

    before = {name: (router.training, router.step.level) for name, router in routers.items()}
    handles = [routers[name].decided.observe(lambda routing, layout, name=name: count(name)) for name in calls]
    try:
        for router in routers.values():
            router.training = False  # of the router alone: norms in its gate stay as they are
        run()
    except _AllDecidedError:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for name, (training, level) in before.items():
            routers[name].training, routers[name].step.level = training, level


def matched_rows(layout: RowLayout, changed: RowLayout, mirrored: bool) -> Tensor:
    """(R,) for each row of an image, the number of the changed image's row that shows the same place.

    Args:
        layout: of the image.
        changed: of the changed one, which may have another size.
        mirrored: whether it is flipped horizontally; columns of patches are then counted from the right.

    Raises:
        MoEConfigError: the images have unequal numbers of rows.
    """
    if layout.blocks() != changed.blocks():
        raise MoEConfigError(
            f'rows per image {[rows for _, rows in layout.blocks()]} became {[r for _, r in changed.blocks()]} with '
            'the image: maps that are smaller than the grid cannot be compared'
        )
    rows, first = [], 0
    for level, (images, patches) in enumerate(layout.blocks()):
        numbers = torch.arange(images * patches) + first
        if mirrored and patches > 1:
            columns = _columns(patches, layout.map_sizes[level])
            numbers = numbers.view(-1, columns).flip(1).flatten()
        rows.append(numbers)
        first += images * patches
    return torch.cat(rows)


def _columns(patches: int, size: tuple[int, int]) -> int:
    """Columns of a grid of patches on an (H, W) map: the wanted cells per axis, or the pixels where they are fewer."""
    side = math.isqrt(patches)
    if side * side == patches and side <= min(size):
        return side
    return patches // size[0] if size[0] < size[1] else size[1]
