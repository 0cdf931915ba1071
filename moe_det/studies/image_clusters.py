"""Clusters the training images by the features of a trained backbone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from ..analysis.clusters import spherical_k_means
from ..common.checkpoints import check_checkpoint, file_sha256
from ..common.config_edit import split_datasets
from ..common.console import check_result, say, write_result
from ..errors import DataError, MoEConfigError
from ..routing.gates import global_average
from ..running.launch import load_config
from ..running.trained_model import TestBatches, load_trained_model, test_batches


def cluster_images(
    config: str,
    checkpoint: str,
    out: str,
    *,
    clusters: int = 4,
    seed: int = 0,
    limit: int | None = None,
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: list[str] | None = None,
) -> dict[str, Any]:
    """Writes the file of clusters that ``ClusterMask`` reads; the function behind ``cluster_images.py``.

    The features are the spatial mean of the backbone's last map, over the training images as the test pipeline
    prepares them, the clusters those of spherical k-means (arXiv 2509.10513, there of sequence embeddings).

    Args:
        config: a config of a model without experts, or with.
        checkpoint: its weights.
        out: the JSON file.
        clusters: C.
        seed: of the clusters' starts.
        limit: only the first N training images; None takes all.
        data_root: folder that replaces the config's data folder.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        What is written: ``centroids``, ``sizes`` (images of each cluster), ``cosine``, ``config``, ``checkpoint``,
        ``sha256``, ``images`` and ``seed``.

    Raises:
        MoEDetError: the config, the checkpoint or the data cannot be used, or there are too few images.
    """
    check_result('OUT', out)
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device, require_moe=False)
    if not hasattr(model, 'backbone'):
        raise MoEConfigError(f'{config}: a {type(model).__name__} has no backbone whose features could be clustered')
    batches = test_batches(training_images(cfg), limit, model.trained_labels)
    if batches.num_images < clusters:
        raise DataError(f'{batches.num_images} images cannot be divided into {clusters} clusters')
    result = spherical_k_means(backbone_features(model, batches), clusters, seed)
    found = {
        'config': str(config),
        'checkpoint': str(checkpoint),
        'sha256': file_sha256(check_checkpoint(checkpoint, 'checkpoint')),
        'images': batches.num_images,
        'seed': seed,
        'sizes': result.sizes,
        'cosine': result.cosine,
        'centroids': result.centroids.tolist(),
    }
    write_result('OUT', out, found)
    sizes = ', '.join(map(str, result.sizes))
    say(f'{batches.num_images} images in {clusters} clusters of {sizes}; mean cosine {result.cosine:.3f}; wrote {out}')
    return found


def training_images(cfg: Config) -> Config:
    """A copy of a config whose test set is the training set, as the test pipeline prepares it.

    Raises:
        MoEConfigError: there is no training set, or no test pipeline.
    """
    cfg = copy.deepcopy(cfg)
    train, test = (split_datasets(cfg, split) for split in ('train', 'test'))
    if not train or not test or 'pipeline' not in test[0][1]:
        raise MoEConfigError(f'{cfg.filename}: clusters need the images of train_dataloader and the test pipeline')
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:  # a wrapper, such as RepeatDataset, brings images again or mixes them
        dataset = dataset['dataset']
    for _, inner in train:
        inner.update(pipeline=test[0][1]['pipeline'], test_mode=True)
    cfg.test_dataloader.dataset = dataset
    cfg.test_evaluator = None  # it is for the images of the test set
    return cfg


@torch.no_grad()
def backbone_features(model: Any, batches: TestBatches) -> np.ndarray:
    """(N, D) spatial mean of the backbone's last map, for every image."""
    found = []
    for _, batch in tqdm(batches, desc='images', unit='batch', disable=None):
        inputs = model.data_preprocessor(batch, False)['inputs']
        found.append(global_average(model.backbone(inputs)[-1]).double().cpu().numpy())
    return np.concatenate(found)
