"""A trained model and the test images in a fixed order: what the analysis tools start from."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Hashable, Iterator, Mapping, Sequence
from urllib.error import URLError

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import SequentialSampler, Subset

from ..checks import is_integer
from ..common.checkpoints import check_checkpoint, fill_model, read_checkpoint, state_of
from ..dataset_check.before_run import check_data
from ..dataset_check.trained_labels import TrainedLabels, trained_labels
from ..errors import CheckpointError, DataError, MoEConfigError
from ..routing.experts import fold_common
from ..routing.router import find_routers

ROUTER_KEY = 'experts_and_k'  # every router of a checkpoint has this buffer


def analysis_device(name: str | torch.device | None = None) -> torch.device:
    """Returns the device to work on.

    Args:
        name: such as ``'cpu'``, ``'cuda'`` or ``'cuda:1'``; None takes CUDA where there is one.

    Raises:
        MoEConfigError: there is no such device.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MoEConfigError(f'--device {name}: expected cpu, cuda or cuda:N') from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise MoEConfigError(f'--device {name}: this machine has {torch.cuda.device_count()} CUDA devices')
    return device


def load_trained_model(
    cfg: Config, checkpoint: str, device: str | torch.device | None = None, *, require_moe: bool = True
) -> BaseModel:
    """Builds the model of a config and fills it from a checkpoint, which must fit it exactly.

    mmengine only warns about missing weights and continues with random ones; every number measured on
    such a model would be wrong, so here it is an error.

    Args:
        cfg: as :func:`moe_det.running.launch.load_config` reads it.
        checkpoint: file or URL, loaded with ``weights_only``.
        device: see :func:`analysis_device`.
        require_moe: refuse configs and checkpoints without MoE layers.

    Returns:
        The detector in evaluation mode, so that ``model.test_step(batch)`` works; with ``trained_labels``, and with
        ``dataset_meta`` (the classes in the order of the labels) where the checkpoint has classes. Every expert is
        whole: what copies share (``copies_share``) is part of each.

    Raises:
        MoEConfigError: the config has no model, no MoE layer, or there is no such device.
        CheckpointError: the file is missing or damaged, has no MoE layer, or does not match the config.
    """
    device = analysis_device(device)
    path = check_checkpoint(checkpoint, 'checkpoint')
    if cfg.get('model') is None:
        raise MoEConfigError(f'{cfg.filename}: the config has no model')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    model = MODELS.build(copy.deepcopy(cfg.model))  # DETR's head changes the dict it is given
    if require_moe and not find_routers(model):
        raise MoEConfigError(
            f'{cfg.filename}: the config builds no MoE layer with a gate, so there are no experts to look at (set '
            "bbox_head.type='MoERetinaHead', backbone.type='MoEResNet', conv_cfg=dict(type='MoEConv2d'), a MoEBlock "
            "plugin or model.type='WithExperts', with num_experts >= 2)"
        )
    content = fill_exactly(model, path, cfg.filename)
    fold_common(model)
    model.trained_labels = trained_labels(cfg, content)
    if model.trained_labels is not None:
        model.dataset_meta = dict(classes=model.trained_labels.names)
    return model.to(device).eval()


def checkpoint_labels(cfg: Config, checkpoint: str) -> TrainedLabels | None:
    """Returns the labels of a checkpoint, file or URL; None if it lists none, or cannot be read, as loading tells."""
    try:
        return trained_labels(cfg, read_checkpoint(checkpoint))
    except (CheckpointError, URLError):
        return None


def fill_exactly(model: nn.Module, path: str, config: str) -> Mapping:
    """Fills a model from a checkpoint that must fit it: no tensor is missing, left over, or of another shape.

    Args:
        model: as the config builds it.
        path: the checkpoint, file or URL.
        config: name of the config, for messages.

    Returns:
        The checkpoint's content.

    Raises:
        CheckpointError: it cannot be read, has no MoE layer where the model has one, or does not fit.
    """
    content = read_checkpoint(path)
    state = state_of(content, path)
    if find_routers(model) and not any(key.endswith(ROUTER_KEY) for key in state):
        raise CheckpointError(
            f'checkpoint {path} has no MoE layer, the config {config} has: name a checkpoint that was trained with '
            'this config'
        )
    fill_model(model, state, path, f'the config {config}')
    return content


class TestBatches:
    """The test images in the order of the annotation file, as often as one iterates; see :func:`test_batches`.

    ``len()`` is the number of batches.

    Attributes:
        dataset: the whole test data set, also when there is a limit.
        metainfo: the data set's ``metainfo`` (``classes``).
        num_images: images that an iteration yields.
    """

    __test__ = False  # no test class, whatever pytest thinks of the name

    def __init__(self, cfg: Config, limit: int | None) -> None:
        loader = dict(cfg.test_dataloader)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells that it reads, parses, has finished
            self.dataset = DATASETS.build(loader.pop('dataset'))
            if hasattr(self.dataset, 'full_init'):
                self.dataset.full_init()
        self.metainfo = getattr(self.dataset, 'metainfo', None) or {}
        self.num_images = len(self.dataset) if limit is None else min(limit, len(self.dataset))
        if self.num_images == 0:
            raise DataError(f'{cfg.filename}: the test set has no images')
        for key in ('batch_sampler', 'num_batch_per_epoch', 'drop_last'):  # they reorder or leave out images
            loader.pop(key, None)
        loader.setdefault('batch_size', 1)
        self._settings = loader

    def __len__(self) -> int:
        return -(-self.num_images // self._settings['batch_size'])

    def __iter__(self) -> Iterator[tuple[list[Hashable], dict]]:
        return self.select(range(len(self)))

    def select(self, numbers: Sequence[int]) -> Iterator[tuple[list[Hashable], dict]]:
        """Yields some of the batches, by number; the images of the others are not read."""
        size = self._settings['batch_size']
        positions = [i for n in numbers for i in range(n * size, min((n + 1) * size, self.num_images))]
        if not positions:
            return
        images = Subset(self.dataset, positions)
        # mmengine's own sampler would give each process of a distributed run a part
        changes = dict(dataset=images, sampler=SequentialSampler(images), persistent_workers=False)
        for batch in Runner.build_dataloader({**self._settings, **changes}):
            yield [_image_id(sample) for sample in batch['data_samples']], batch


def _image_id(sample) -> Hashable:
    if 'img_id' not in sample.metainfo_keys():
        raise MoEConfigError(
            "test_dataloader: the images have no img_id: add 'img_id' to meta_keys of PackDetInputs, the last step of "
            'the pipeline'
        )
    return sample.img_id


def test_batches(cfg: Config, limit: int | None = None, trained: TrainedLabels | None = None) -> TestBatches:
    """Returns the batches of the config's test set, checked, unshuffled and in one process.

    Example:
        >>> for image_ids, batch in test_batches(cfg, limit=100):
        ...     results = model.test_step(batch)

    Args:
        cfg: as :func:`moe_det.running.launch.load_config` reads it.
        limit: only the first N images of the data set; None takes all.
        trained: the labels of the checkpoint, which are compared with the test set's; a model from
            :func:`load_trained_model` has them as ``trained_labels``.

    Returns:
        An iterable of (image ids as the annotation file has them, batch); ``batch`` is what ``model.test_step`` takes.
        See :class:`TestBatches`.

    Raises:
        MoEConfigError: the config has no test set, or ``limit`` is no positive integer.
        DataError: files of the test set are missing or damaged, or give the classes other labels than the model has.
    """
    if limit is not None and not is_integer(limit, 1):
        raise MoEConfigError(f'--limit {limit}: expected an integer >= 1')
    if not isinstance(cfg.get('test_dataloader'), Mapping):
        raise MoEConfigError(f'{cfg.filename}: the config has no test_dataloader')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    check_data(cfg, ('test',), trained)
    return TestBatches(cfg, limit)


test_batches.__dict__['__test__'] = False  # pytest looks at its name
