"""Models and checkpoint files of the converters."""

from __future__ import annotations

import ast
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..common.atomic_file import write_atomically
from ..common.checkpoints import file_sha256
from ..common.config_edit import is_remote
from ..common.dense_counterpart import dense_counterpart, type_name
from ..errors import MoEConfigError
from ..registry import REGISTERED
from ..running.launch import load_config

OUR_HOOKS = {path.split(':')[1] for path in REGISTERED[HOOKS]}


def read_model_config(config: str, cfg_options: Sequence[str] | None, data_root: str | None = None) -> Config:
    """Reads a config that has a model.

    Raises:
        MoEConfigError: it cannot be read, or has none.
    """
    cfg = load_config(config, cfg_options, data_root)
    if cfg.get('model') is None:
        raise MoEConfigError(f'{config}: the config has no model')
    init_default_scope(cfg.default_scope)
    return cfg


def build_model(model: Mapping) -> nn.Module:
    """Builds the ``model`` of a config, initialised as for training; pretrained weights are not fetched."""
    with quiet_log():  # it would list how every single tensor was initialised
        built = MODELS.build(_without_pretrained(deepcopy(model)))
        built.init_weights()
    return built


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keeps everything but errors out of mmengine's log meanwhile."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _without_pretrained(node: object) -> object:
    if isinstance(node, (list, tuple)):
        return type(node)(_without_pretrained(item) for item in node)
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'init_cfg' and type_name(value) == 'Pretrained' or key == 'pretrained' and isinstance(value, str):
                node[key] = None
            else:
                node[key] = _without_pretrained(value)
    return node


def plain_config(cfg: Config) -> Config:
    """The config of the same model without experts, which mmdet reads without this package."""
    plain = deepcopy(cfg)
    plain.model = dense_counterpart(cfg.model)[0]
    imports = plain.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    if 'moe_det' in names:
        kept = [name for name in names if name != 'moe_det']
        plain.custom_imports = dict(imports, imports=kept) if kept else None
    hooks = plain.get('custom_hooks')
    if hooks:
        plain.custom_hooks = [hook for hook in hooks if type_name(hook) not in OUR_HOOKS]
    return plain


def config_text(cfg: Config) -> str:
    """A config as Python text that mmengine reads, one line for each top-level key."""
    lines = [f'{key} = {value!r}' for key, value in cfg.to_dict().items()]
    try:
        for line in lines:
            ast.literal_eval(line.partition(' = ')[2])
    except (SyntaxError, ValueError):
        return cfg.pretty_text  # classes in place of names; takes seconds to lay out
    return '\n'.join(lines) + '\n'


def check_out(out: str, source: str) -> None:
    """Refuses a name for the new checkpoint before any work is done.

    Raises:
        MoEConfigError: it does not end in .pth, or is the file that is read.
    """
    if not out.endswith('.pth'):
        raise MoEConfigError(f'OUT {out}: expected a name that ends in .pth')
    if not is_remote(source) and os.path.exists(out) and os.path.realpath(out) == os.path.realpath(source):
        raise MoEConfigError(f'OUT {out} is the checkpoint that is read; give it another name')


def save_model(
    out: str, state: Mapping[str, Tensor], cfg: Config, content: Mapping, source: str, notes: Mapping[str, object]
) -> None:
    """Writes a checkpoint that mmengine and ``DetInferencer`` read, whole or not at all.

    Args:
        out: the file.
        state: the weights.
        cfg: the config that they fit; its text is part of the file.
        content: the checkpoint that was read; its classes are kept.
        source: its path.
        notes: how the weights were made, plain values.

    Raises:
        MoEConfigError: the file cannot be written.
    """
    stored = content.get('meta')
    old = stored if isinstance(stored, Mapping) else {}
    meta: dict[str, object] = {key: old[key] for key in ('dataset_meta', 'CLASSES', 'PALETTE') if key in old}
    meta['cfg'] = config_text(cfg)
    meta['moe_det'] = {'source': os.path.basename(source), 'source_sha256': file_sha256(source), **notes}
    buffer = io.BytesIO()
    torch.save({'meta': meta, 'state_dict': dict(state)}, buffer)
    try:
        write_atomically(out, buffer.getbuffer())
    except OSError as error:
        raise MoEConfigError(f'OUT {out}: cannot be written: {error.strerror}') from error
