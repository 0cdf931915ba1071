"""A hook that logs during validation which experts handle the objects of each size."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager

import numpy as np
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook

from ..analysis.sizes import SIZE_NAMES, size_bins
from ..common.runner_parts import plain_model
from ..dataset_check.dataset_paths import annotation_file
from ..errors import MoEConfigError
from ..probing.following import following
from ..probing.layer_description import refuse_tokens
from ..routing.records import RoutingRecord, RoutingRecorder
from ..routing.router import find_routers
from .moe_hook import MOST_LAYERS_LOGGED
from .objects_by_size import (
    ImageObjects,
    expert_size_table,
    pyramid_of,
    read_objects,
    size_gap,
    weights_by_detection,
    weights_of_objects,
)


class ExpertSizeHook(Hook):
    """Logs after every validation how the gate's weights are spread over the experts for objects of each size.

    Every ground truth (COCO's ``area`` in original pixels: small up to 32², medium up to 96², large; crowds left out)
    gets the mixture weights of the routing row of its image, at the level whose stride times the head's smallest anchor
    scale (4 in RetinaNet) is nearest, on a logarithmic scale, to the square root of its area in resized pixels, and at
    the patch that holds its centre. Layers that decide once for all levels have that one row. In layers of object
    queries or of regions of interest it is the row of the query or region whose detection overlaps the object most, and
    objects that none overlaps by half are left out. Per layer the log shows a table, and

    - ``moe_size_gap/<layer>``: total variation distance between the experts' shares of small and of large objects; 0
      when both have the same experts, 1 when they share none; the largest of all layers when there are more than four.
    - ``moe_size_share/<layer>/<size>/<expert>`` in the visualisation backends: the table's shares. With shards,
      copy c of shard s is expert s * copies + c, and every shard has an equal part of the weights.

    A large gap is not specialisation in size: size and level nearly coincide, and a gate that recognises its level has
    one too. The command ``moe-det report`` distinguishes the two.

    Args:
        ann_file: COCO json of the validation set; None takes the one of ``val_evaluator`` or the data set.

    Attributes:
        mass: by layer, (E, 3) sums of the weights, of the last validation.
        counts: (3,) objects of each size, of the last validation.
        levels: by layer that sees several levels, (L, 3) objects by level and size.
    """

    priority = 55  # after MoEHook (50), before LoggerHook (60), which writes what this hook measures

    def __init__(self, ann_file: str | None = None) -> None:
        if ann_file is not None and not isinstance(ann_file, str):
            raise MoEConfigError(f'ExpertSizeHook.ann_file={ann_file!r}: expected a path')
        self.ann_file = ann_file
        self.mass: dict[str, np.ndarray] = {}
        self.counts = np.zeros(len(SIZE_NAMES))
        self.levels: dict[str, np.ndarray] = {}
        self._objects: dict[Hashable, ImageObjects] | None = None
        self._found: dict[Hashable, dict] = {}
        self._recorder: RoutingRecorder | None = None
        self._numbered: list[str] = []
        self._detections: AbstractContextManager | None = None  # adds queries or regions to them

    def before_train(self, runner) -> None:
        """Reads the annotations, so that a wrong path ends a training before it starts."""
        if runner.val_loop is not None:
            self._read(runner)

    def before_val_epoch(self, runner) -> None:
        """Starts observing the routers.

        Raises:
            MoEConfigError: the config builds no MoE layer.
            DataError: the annotations cannot be used.
        """
        self._read(runner)
        self._stop()  # a validation that was interrupted
        model = plain_model(runner)
        routers = find_routers(model)
        self._slots = {name: router.slots for name, router in routers.items()}
        if not routers:
            raise MoEConfigError('ExpertSizeHook is in the config, but the config builds no MoE layer; take it out')
        followed = following(model)
        self._numbered = followed.numbered
        refuse_tokens(routers, routers, 'ExpertSizeHook (take it out)', followed=self._numbered)
        self._strides, self._scale = pyramid_of(model)
        self._classes = (getattr(runner.val_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        self._found = {}
        self._recorder = RoutingRecorder(model).start()
        if self._numbered:
            self._detections = followed.recorder()
            self._detections.__enter__()

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Names the images of the batch."""
        samples = data_batch['data_samples']
        if any('img_id' not in sample.metainfo_keys() for sample in samples):
            raise MoEConfigError("ExpertSizeHook: PackDetInputs of the validation pipeline needs 'img_id' in meta_keys")
        assert self._recorder is not None  # started before the epoch
        self._recorder.records.clear()
        self._recorder.start_batch(range(len(samples)))  # ids of a json may be of any kind

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Gives every ground truth of the batch its row's weights."""
        assert self._recorder is not None  # started before the epoch
        layers: dict[str, list[RoutingRecord]] = {}
        for record in self._recorder.records:
            layers.setdefault(record.layer, []).append(record)
        for position, sample in enumerate(outputs):
            objects = self._objects_of(sample.img_id)
            sizes = size_bins(objects.areas)
            found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
            for name, records in layers.items():
                mass = np.zeros((records[0].weights.shape[1], len(SIZE_NAMES)))
                if name in self._numbered:
                    weights, kept = weights_by_detection(records, position, sample.pred_instances, objects)
                    np.add.at(mass.T, sizes[kept], weights)
                    found[name] = (mass, None)
                    continue
                pyramid = self._strides, self._scale
                weights, levels = weights_of_objects(records, position, sample.metainfo, objects, *pyramid)
                np.add.at(mass.T, sizes, weights)
                by_level = np.zeros((1 + max(max(record.map_sizes) for record in records), len(SIZE_NAMES)))
                np.add.at(by_level, (levels, sizes), 1)
                found[name] = (mass, by_level if records[0].unit != 'image' and len(by_level) > 1 else None)
            self._found[sample.img_id] = {'counts': np.bincount(sizes, minlength=len(SIZE_NAMES)), 'layers': found}

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Joins the processes' images and logs table and scalars."""
        self._stop()
        joined: dict[Hashable, dict] = {}
        for part in all_gather_object(self._found):
            joined.update(part)  # samplers repeat images so that processes have equally many; each counts once
        self._found = {}
        self.mass, self.levels = {}, {}
        self.counts = np.zeros(len(SIZE_NAMES))
        for image_id in sorted(joined, key=str):  # the same order, so the same rounding, for any number of processes
            self.counts += joined[image_id]['counts']
            for name, (mass, by_level) in joined[image_id]['layers'].items():
                self.mass[name] = self.mass.get(name, 0) + mass
                if by_level is not None:
                    self.levels[name] = self.levels.get(name, 0) + by_level
        if not self.counts.sum():
            runner.logger.warning(f'ExpertSizeHook: no image of the validation has a ground truth in {self.path}')
            return
        runner.logger.info(expert_size_table(self.mass, self.counts, self.levels, self._slots))
        gaps = {name: gap for name, mass in self.mass.items() if (gap := size_gap(mass)) is not None}
        if len(self.mass) > MOST_LAYERS_LOGGED and gaps:
            runner.message_hub.update_scalar('val/moe_size_gap', max(gaps.values()))
        elif gaps:
            for name, gap in gaps.items():
                runner.message_hub.update_scalar(f'val/moe_size_gap/{name}', gap)
        self._write_shares(runner)

    def _stop(self) -> None:
        """Listens no longer."""
        if self._recorder is not None:
            self._recorder.stop()
        if self._detections is not None:
            self._detections.__exit__(None, None, None)
        self._recorder = self._detections = None

    def _write_shares(self, runner) -> None:
        values: dict[str, float] = {}
        for name, mass in self.mass.items():
            for size, column in zip(SIZE_NAMES, mass.T, strict=True):
                if column.sum():
                    shares = (column / column.sum()).tolist()
                    values |= {f'moe_size_share/{name}/{size}/{expert}': s for expert, s in enumerate(shares)}
        # as LoggerHook does: a runner that only validates has no training loop, and asking for the iteration builds one
        training = runner._train_loop is not None and not isinstance(runner._train_loop, dict)
        runner.visualizer.add_scalars(values, step=runner.iter if training else 0)

    def _read(self, runner) -> None:
        if self._objects is None:
            self.path = self.ann_file or annotation_file(runner.cfg, 'val')
            self._objects = read_objects(self.path)

    def _objects_of(self, image_id: Hashable) -> ImageObjects:
        objects = (self._objects or {}).get(image_id)
        if objects is None:
            return ImageObjects.none()
        if self._classes is None:
            return objects
        kept = np.array([name in self._classes for name in objects.categories], dtype=bool)
        names = tuple(name for name, keep in zip(objects.categories, kept, strict=True) if keep)
        return ImageObjects(objects.areas[kept], objects.centres[kept], names, objects.boxes[kept])
