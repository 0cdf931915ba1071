"""What an attack study starts from: the questions, the rows and the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from tqdm import tqdm

from ..analysis.ground_truth import GroundTruth
from ..attacks.plan import ATTACKS, CORRUPTIONS, EXPERT, PARTS, SEVERITIES, Attack
from ..attacks.rows import ALL, FORCED, OWN, Row, rows_of_detector
from ..dataset_check.before_run import check_data
from ..dataset_check.dataset_paths import annotation_file
from ..errors import MoEConfigError
from ..running.launch import Options, load_config
from ..running.trained_model import TestBatches, analysis_device, load_trained_model, test_batches
from .attacked_images import Scene, scenes_of, with_gates


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        attacks: names of attacks; None takes all that the rows allow.
        eps: largest changes of a pixel, of 255.
        loss: parts of the detection loss to attack; the transfer matrix takes the first.
        rows: kinds of rows of the first checkpoint.
        corruptions: names of corruptions; none where it is empty.
        severities: of corruptions.
        limit: the first images of the test set; None takes all.
        universal_images: number of images that universal perturbations are fitted to, from the end of the test set.
        universal_passes: passes over these.
        seed: of everything random.
    """

    attacks: Sequence[str] | None = None
    eps: Sequence[float] = (2.0, 4.0, 8.0)
    loss: Sequence[str] = PARTS[:1]
    rows: Sequence[str] = (OWN, FORCED, ALL)
    corruptions: Sequence[str] = CORRUPTIONS
    severities: Sequence[int] = SEVERITIES
    limit: int | None = None
    universal_images: int = 64
    universal_passes: int = 5
    seed: int = 0


@dataclass
class Bench:
    """The rows, the images and what was found on them without any change.

    Attributes:
        cfg: of the first checkpoint.
        rows: of all checkpoints.
        attacks: that were asked for, or all that the rows allow.
        batches: the test set, one image each.
        numbers: positions of the images that are looked at.
        ground_truth: of these.
        device: where the detectors are.
        clean: numbers of each row on clean images, by its name.
        choices: of its gates on each, by name of the row, image by image.
    """

    cfg: Config
    rows: list[Row]
    attacks: list[Attack]
    batches: TestBatches
    numbers: range
    ground_truth: GroundTruth
    device: torch.device
    clean: dict[str, dict] = field(default_factory=dict)
    choices: dict[str, list[dict]] = field(default_factory=dict)

    def scenes(self, batches: TestBatches | None = None, words: str = 'images') -> Iterable[Scene]:
        """The images, or what another pipeline makes of them."""
        scenes = scenes_of(batches or self.batches, self.numbers, self.ground_truth, self.device)
        return tqdm(scenes, desc=words, total=len(self.numbers), unit='img', disable=None)


def prepare(
    config: str,
    checkpoint: str,
    questions: Questions,
    also: Sequence[Sequence[str]],
    data_root: str | None,
    device: str | None,
    cfg_options: Options,
) -> Bench:
    """Loads detectors and test set; see :func:`.withstanding.attack` for the arguments and errors."""
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device, require_moe=False)
    rows = rows_of_detector(Path(config).stem, model, questions.rows)
    if isinstance(cfg.get('test_dataloader'), dict):
        cfg.test_dataloader.batch_size = 1  # no image's loss depends on another, nor is any padded to its size
    batches = test_batches(cfg, None, model.trained_labels)
    if not hasattr(batches.dataset, 'cat_ids'):
        raise MoEConfigError(
            f'test_dataloader.dataset: {type(batches.dataset).__name__} has no COCO categories (cat_ids), which '
            'average precision needs'
        )
    for other_config, other_checkpoint in also:
        other = load_config(other_config, None, data_root)
        detector = load_trained_model(other, other_checkpoint, device, require_moe=False)
        _check_same_images(cfg, other)
        check_data(cfg, ('test',), detector.trained_labels)
        rows += rows_of_detector(_free_name(Path(other_config).stem, rows), detector, (OWN,))
    numbers = range(min(questions.limit or len(batches), len(batches)))
    ground_truth = truth_of(cfg, batches, numbers)
    return Bench(
        cfg, rows, _attacks_on(rows, questions.attacks), batches, numbers, ground_truth, analysis_device(device)
    )


def _attacks_on(rows: Sequence[Row], wanted: Sequence[str] | None) -> list[Attack]:
    forced = any(row.expert is not None for row in rows)
    missing = {}
    for name, attack in ATTACKS.items():
        if attack.on_gate and not with_gates(attack, rows):
            whose = 'row of the first detector' if attack.objective == EXPERT else 'row'
            missing[name] = f'no {whose} has gates that decide (experts, and --rows own)'
        elif attack.objective == EXPERT and not forced:
            missing[name] = 'which expert is the worst is known by --rows forced alone'
    if wanted is None:
        return [attack for name, attack in ATTACKS.items() if name not in missing]
    for name in wanted:
        if name in missing:
            raise MoEConfigError(f'--attacks {name}: {missing[name]}')
    return [ATTACKS[name] for name in wanted]


def truth_of(cfg: Config, batches: TestBatches, numbers: Sequence[int]) -> GroundTruth:
    """The annotations of some images of a test set."""
    ids = [batches.dataset.get_data_info(number)['img_id'] for number in numbers]
    return GroundTruth(annotation_file(cfg), ids, batches.dataset.cat_ids)


def _check_same_images(cfg: Config, other: Config) -> None:
    pipelines = [(c.get('test_dataloader') or {}).get('dataset', {}).get('pipeline') for c in (cfg, other)]
    if pipelines[0] != pipelines[1]:
        raise MoEConfigError(
            f'--also {other.filename}: its test pipeline differs from that of {cfg.filename}, so the same pixels '
            'cannot be shown to both'
        )


def _free_name(name: str, rows: Sequence[Row]) -> str:
    names = {row.name for row in rows}
    return next(free for n in range(1, len(names) + 2) if (free := name if n == 1 else f'{name} ({n})') not in names)
