"""Runs a detector on one image and keeps how its layers routed it, for pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from torch import nn

from ..analysis.coco_json import read_json
from ..analysis.ground_truth import checked_area
from ..analysis.patches import patch_cells
from ..common.config_edit import split_datasets
from ..common.console import near, say
from ..common.image_frame import Frame
from ..dataset_check.before_run import check_data
from ..dataset_check.dataset_paths import annotation_file, dataset_class
from ..dataset_check.labels import config_classes
from ..errors import DataError, MoEConfigError
from ..figures.routing_pictures import Boxes, RoutedLevel, RoutedPicture, routing_figure
from ..probing.layer_description import refuse_tokens
from ..routing.records import RoutingRecord, RoutingRecorder
from ..routing.router import find_routers
from ..running.launch import load_config
from ..running.trained_model import load_trained_model

SUFFIXES = ('.png', '.svg', '.pdf')


def draw_routing(
    config: str,
    checkpoint: str,
    image: str | None = None,
    *,
    out: str | None = None,
    layer: str | None = None,
    ann_file: str | None = None,
    data_root: str | None = None,
    image_id: str | int | None = None,
    device: str | None = None,
    score_thr: float = 0.3,
    cfg_options: list[str] | None = None,
) -> None:
    """Draws one image with the experts chosen for it; the function behind ``vis_routing.py``.

    Args:
        config: the config of the detector.
        checkpoint: its weights.
        image: an image file; or None with ``image_id``.
        out: PNG, SVG or PDF file; default ``<image name>_routing.png`` in the current folder.
        layer: draw this layer alone.
        ann_file: COCO json with the ground truth of ``image``.
        data_root: folder of the config's test set.
        image_id: takes image and ground truth from the config's test set; a text names an id of any type.
        device: see :func:`.trained_model.analysis_device`.
        score_thr: least score of the detections.
        cfg_options: changes of the config.

    Raises:
        MoEDetError: the config, the checkpoint, the image or the annotations cannot be used.
    """
    cfg = load_config(config, cfg_options, data_root)
    truths: Boxes | None = None
    if image_id is not None:
        ann_file = annotation_file(cfg)
        image, truths = _annotated(ann_file, image_id, _image_folder(cfg))
    elif image is None:
        raise MoEConfigError('expected an image file or image_id')
    elif not os.path.isfile(image):
        raise DataError(f'the image {image} does not exist (looked for {os.path.abspath(image)})')
    elif ann_file is not None:
        truths = _annotated(ann_file, Path(image))[1]
    target = Path(out if out is not None else f'{Path(image).stem}_routing.png')
    if target.suffix.lower() not in SUFFIXES:
        raise MoEConfigError(f'--out {target}: expected a name that ends in {", ".join(SUFFIXES)}')
    model = load_trained_model(cfg, checkpoint, device)
    if image_id is not None:
        check_data(cfg, ('test',), model.trained_labels)
    layers = find_routers(model)
    if layer is not None and layer not in layers:
        raise MoEConfigError(f'--layer {layer}: the layers are {", ".join(layers)}.{near(layer, layers)}')
    refuse_tokens(layers, layers if layer is None else [layer], 'a picture', '--layer')
    routed = route_image(model, cfg, image, score_thr=score_thr, truths=truths)
    if layer is not None:
        routed.layers.update({layer: routed.layers.pop(layer)})
        for other in [name for name in routed.layers if name != layer]:
            del routed.layers[other]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        routing_figure(routed).savefig(target, dpi=150)
    except OSError as error:
        raise MoEConfigError(f'--out {target}: cannot be written: {error.strerror}') from error
    say(f'{target}: {Path(image).name}, {", ".join(routed.layers)}; {len(routed.detections.areas)} detections')


@torch.no_grad()
def route_image(
    model: BaseModel, cfg: Config, path: str, *, score_thr: float = 0.3, truths: Boxes | None = None
) -> RoutedPicture:
    """Runs the test pipeline and the detector on one image.

    Args:
        model: from :func:`.trained_model.load_trained_model`.
        cfg: its config.
        path: the image file.
        score_thr: least score of the detections that are kept.
        truths: ground truth to draw as well.
    """
    # read as the test pipeline reads it, which turns pictures as their EXIF data says
    pixels = mmcv.imread(path)
    if pixels is None:
        raise DataError(f'{path}: not an image that can be read')
    pixels = pixels[..., ::-1]  # BGR -> RGB
    data = _test_pipeline(cfg)(dict(img_path=path, img_id=0))
    routers = find_routers(model)
    with RoutingRecorder(model) as recorder:
        recorder.start_batch([0])
        result = model.test_step(pseudo_collate([data]))[0]
    layers: dict[str, list[RoutedLevel]] = {}
    for record in recorder.records:
        layers.setdefault(record.layer, []).extend(
            _levels(record, result.metainfo, pixels.shape[:2], routers[record.layer].slots)
        )
    return RoutedPicture(Path(path).name, pixels, layers, _detections(result, score_thr, model, cfg), score_thr, truths)


def _test_pipeline(cfg: Config) -> Compose:
    datasets = split_datasets(cfg, 'test')
    if not datasets or not datasets[0][1].get('pipeline'):
        raise MoEConfigError(f'{cfg.filename}: test_dataloader.dataset has no pipeline to read the image with')
    steps = [step for step in datasets[0][1]['pipeline'] if 'LoadAnnotations' not in str(step.get('type'))]
    return Compose(steps)


def _levels(record: RoutingRecord, meta: Mapping, shape: tuple[int, int], slots: int) -> list[RoutedLevel]:
    """One :class:`RoutedLevel` per level of a record."""
    found = []
    for level in record.levels.unique().tolist():
        rows = record.levels == level
        height, width = record.map_sizes[level]
        title = f'level {level} · map {width}×{height}'
        if record.unit == 'image' and len(record.map_sizes) > 1:
            title = 'all levels'
        cells = patch_cells((height, width), int(rows.sum()) if record.unit == 'patch' else 1)
        # fractions of the padded input -> its pixels -> pixels of the original
        cells = Frame.of(meta).to_original(cells * np.tile(meta['batch_input_shape'][::-1], 2))
        cells = np.clip(cells, 0, np.tile(shape[::-1], 2))
        found.append(RoutedLevel(title, cells, record.weights[rows].double().numpy(), slots))
    return found


def _detections(result, score_thr: float, model: nn.Module, cfg: Config) -> Boxes:
    found = result.pred_instances.cpu()
    kept = found[found.scores >= score_thr]
    corners = kept.bboxes.double().numpy().reshape(-1, 4)
    classes = _classes(model, cfg)
    labels = [
        f'{classes[label] if label < len(classes) else label} {score:.2f}'
        for label, score in zip(kept.labels.tolist(), kept.scores.tolist(), strict=True)
    ]
    # COCO takes the box's area for detections, even where ground truths have masks
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return Boxes(corners, areas, labels)


def _classes(model: nn.Module, cfg: Config) -> Sequence[str]:
    """The names of the labels: the checkpoint's; where it has none, the config's."""
    classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
    for where, dataset in split_datasets(cfg, 'test') if classes is None else ():
        kind = dataset_class(dataset)
        classes = classes or (config_classes(where, dataset, kind) if kind is not None else None)
    return classes or ()


# -- annotations -----------------------------------------------------------------------------------------------


def _image_folder(cfg: Config) -> str:
    (_, dataset), *_ = split_datasets(cfg, 'test')
    return os.path.join(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img') or '')


def _annotated(ann_file: str, wanted: str | int | Path, folder: str = '') -> tuple[str, Boxes]:
    """Returns an image's path and ground truths, crowds left out, by its id or by its file's name."""
    if not os.path.isfile(ann_file):
        raise DataError(f'the annotation file {ann_file} does not exist (looked for {os.path.abspath(ann_file)})')
    content = read_json(ann_file)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ('images', 'annotations')):
        raise DataError(f"{ann_file}: expected COCO annotations with the lists 'images' and 'annotations'")
    if isinstance(wanted, Path):
        entries = _named(content['images'], wanted)
        missing = f'{ann_file}: no image has the file name {wanted.name}'
        if len(entries) > 1:
            found = ', '.join(f'{image["file_name"]} (id {image["id"]})' for image in entries[:5])
            raise DataError(f'{ann_file}: several images may be {wanted}: {found}; name one with --image-id')
    else:
        entries = [image for image in content['images'] if str(image['id']) == str(wanted)]
        some = ', '.join(str(image['id']) for image in content['images'][:5])
        missing = f'--image-id {wanted}: {ann_file} has no such image; its first ids are {some}'
    if not entries:
        raise DataError(missing)
    image = entries[0]
    names = {category['id']: str(category['name']) for category in content.get('categories', [])}
    objects = [a for a in content['annotations'] if a['image_id'] == image['id'] and not a.get('iscrowd')]
    boxes = np.array([a['bbox'] for a in objects], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [names.get(a['category_id'], str(a['category_id'])) for a in objects]
    return os.path.join(folder, image['file_name']), Boxes(
        boxes, np.array([checked_area(ann_file, a) for a in objects]), labels
    )


def _named(images: list[dict], path: Path) -> list[dict]:
    """The images whose file name agrees with most of the end of a path; several folders may have files of one name."""
    found = [image for image in images if Path(image['file_name'].replace('\\', '/')).name == path.name]
    parts = path.absolute().parts
    for length in range(2, len(parts) + 1):
        longer = [image for image in found if Path(image['file_name']).parts[-length:] == parts[-length:]]
        if not longer:
            break
        found = longer
    return found
