"""Bases named ``moe_det::...``: mmengine resolves ``package::path`` for a fixed list of packages only."""

from __future__ import annotations

from mmengine.config import Config

from ..packaged_configs import PREFIX, packaged_config


def know_own_configs() -> None:
    """Lets ``_base_`` of a config name one of this package's, such as ``moe_det::retinanet_moe_soft.py``."""
    known = Config._get_cfg_path
    if getattr(known, 'knows_moe_det', False):
        return

    def path_and_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
        own = packaged_config(cfg_path) if cfg_path.startswith(PREFIX) else None
        # no scope: the classes are in mmdet's registries
        return known(cfg_path, filename) if own is None else (str(own), None)

    path_and_scope.__dict__['knows_moe_det'] = True
    Config._get_cfg_path = staticmethod(path_and_scope)
