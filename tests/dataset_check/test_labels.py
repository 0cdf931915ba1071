"""Which label stands for which class, against the labels that mmdet's own data sets give."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image
from small_files import coco_content

from moe_det.dataset_check.before_run import check_data
from moe_det.dataset_check.coco_file import read_categories
from moe_det.dataset_check.thorough import check_dataset
from moe_det.dataset_check.trained_labels import TrainedLabels, trained_labels
from moe_det.errors import DataError
from moe_det.running.trained_model import checkpoint_labels

NAMES = ('disc', 'box', 'star')
IDS = dict(disc=3, box=1, star=7)


def content(names=NAMES, ids=IDS) -> dict:
    """Two images with an object of each class."""
    objects = [(image, ids[name], [1, 1, 4, 4]) for image in range(2) for name in names]
    return coco_content(objects, range(2), {ids[name]: name for name in names}, (8, 8))


@pytest.fixture
def root(tmp_path) -> Path:
    for number in range(2):
        Image.new('RGB', (8, 8)).save(tmp_path / f'{number}.png')
    for name in ('train', 'val'):
        (tmp_path / f'{name}.json').write_text(json.dumps(content()))
    return tmp_path


def leaf(root: Path, name: str, classes=NAMES) -> dict:
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file=f'{name}.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        pipeline=[],
    )


def wrapped(kind: str, dataset: dict) -> dict:
    return {
        'plain': dataset,
        'repeat': dict(type='RepeatDataset', times=2, dataset=dataset),
        'balanced': dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset),
        'joined': dict(type='ConcatDataset', datasets=[dataset]),
        'nested': dict(
            type='RepeatDataset',
            times=1,
            dataset=dict(type='ConcatDataset', datasets=[dict(type='MultiImageMixDataset', dataset=dataset)]),
        ),
    }[kind]


def config(root: Path, classes=NAMES, wrap: str = 'plain', outputs: int = 3) -> Config:
    val = leaf(root, 'val', classes)
    metric = dict(type='CocoMetric', ann_file=str(root / 'val.json'))
    return Config(
        dict(
            train_dataloader=dict(dataset=wrapped(wrap, leaf(root, 'train', classes))),
            val_dataloader=dict(dataset=val),
            val_evaluator=metric,
            test_dataloader=dict(dataset=val),
            test_evaluator=metric,
            model=dict(bbox_head=dict(num_classes=outputs)),
        )
    )


def names_by_label(root: Path, name: str, classes=NAMES) -> list[str]:
    """What label 0, 1, ... are called, by mmdet's loader and the category ids of the file."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = DATASETS.build({**leaf(root, name, classes), '_scope_': 'mmdet'})
    by_id = {entry['id']: entry['name'] for entry in json.loads((root / f'{name}.json').read_text())['categories']}
    return [by_id[ident] for ident, _ in sorted(dataset.cat2label.items(), key=lambda item: item[1])]


def message(cfg: Config, *splits: str, trained=None) -> str:
    with pytest.raises(DataError) as caught:
        check_data(cfg, splits or ('train', 'val'), trained)
    return str(caught.value)


def paste(text: str) -> None:
    """Runs the lines of Python in a message."""
    lines = [line.strip() for line in text.splitlines()]
    begin = lines.index('import json')
    end = next(n for n in range(begin, len(lines)) if lines[n].startswith('json.dump('))
    exec('\n'.join(lines[begin : end + 1]), {})


def write(path: Path, changed: dict) -> None:
    path.write_text(json.dumps(changed))


@pytest.mark.parametrize('wrap', ['plain', 'repeat', 'balanced', 'joined', 'nested'])
@pytest.mark.parametrize(
    'names', [NAMES[::-1], ('disc', 'star', 'box'), ('disc', 'star'), ('box', 'star'), ('disc', 'box')]
)
def test_files_with_other_labels_are_refused_and_the_pasted_lines_mend_them(root, names, wrap, capsys):
    write(root / 'val.json', content(names))
    assert names_by_label(root, 'val') != names_by_label(root, 'train')
    text = message(config(root, wrap=wrap))
    assert str(root / 'val.json') in text and str(root / 'train.json') in text
    assert all(repr(name) in text for name in set(NAMES) - set(names))
    paste(text)
    check_data(config(root, wrap=wrap))
    assert names_by_label(root, 'val') == names_by_label(root, 'train') == list(NAMES)
    categories = {entry['id']: entry['name'] for entry in json.loads((root / 'val.json').read_text())['categories']}
    kept = json.loads((root / 'val.json').read_text())['annotations']
    assert [categories[a['category_id']] for a in kept] == [*names, *names]  # every object is what it was


@pytest.mark.parametrize('ids', [dict(disc='c', box='a', star='b'), dict(disc=0, box=2**70, star=-4)])
def test_pasted_lines_cope_with_ids_of_any_kind(root, ids):
    write(root / 'train.json', content(ids=ids))
    write(root / 'val.json', content(('disc', 'star'), ids))
    paste(message(config(root)))
    check_data(config(root))


def test_train_files_that_are_joined_must_agree(root):
    write(root / 'more.json', content(NAMES[::-1]))
    cfg = config(root)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf(root, 'train'), leaf(root, 'more')])
    text = message(cfg, 'train')
    assert 'datasets[1]' in text and 'more.json' in text and 'train.json' in text


def test_a_train_file_that_lacks_the_last_class_alone_is_one_line(root, capsys):
    write(root / 'train.json', content(('disc', 'box')))
    check_data(config(root))
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and 'train.json' in err and "'star'" in err


def test_the_file_of_a_metric_has_labels_too(root):
    write(root / 'scored.json', content(NAMES[::-1]))
    cfg = config(root)
    cfg.val_evaluator.ann_file = str(root / 'scored.json')
    assert 'scored.json' in (text := message(cfg)) and 'val_evaluator.ann_file' in text


@pytest.mark.parametrize(
    ('classes', 'names', 'hint'),
    [
        (('disc', 'bxo', 'star'), NAMES, "'bxo': Did you mean 'box'?"),
        (NAMES, ('disc', 'Box', 'star'), "'box': Did you mean 'Box'?"),
        (NAMES, ('disc', 'box ', 'star'), "'box': Did you mean 'box '?"),
        (('disc', 'small, red box', 'star'), ('disc', 'small red box', 'star'), "'small, red box': Did you mean 's"),
        (('disc', 'quadrangle', 'star'), NAMES, "'quadrangle'"),
    ],
)
def test_misspelt_classes_are_named_with_what_is_near(root, classes, names, hint):
    ids = dict(zip(names, (3, 1, 7), strict=True))
    for name in ('train', 'val'):
        write(root / f'{name}.json', content(names, ids))
    text = message(config(root, classes))
    assert hint in text
    line = next(line for line in text.splitlines() if 'metainfo=' in line)
    pasted = eval(f'dict({line.partition("#")[0]})')  # as a config would take it
    check_data(config(root, pasted['metainfo']['classes']))


def test_lines_for_a_misspelt_class_leave_out_what_was_ignored_before(root):
    for name in ('train', 'val'):
        write(root / f'{name}.json', content(('things', *NAMES), dict(IDS, things=0)))
    assert "classes=('disc', 'box', 'star'))" in message(config(root, ('disc', 'bxo', 'star')))


def test_a_category_misspelt_in_one_file_is_renamed_there(root):
    write(root / 'val.json', content(('disc', 'bxo', 'star'), dict(disc=3, bxo=1, star=7)))
    text = message(config(root))
    assert "'box': Did you mean 'bxo'?" in text
    paste(text)
    check_data(config(root))
    assert json.loads((root / 'val.json').read_text())['categories'] == content()['categories']


def test_a_class_that_no_file_has_shifts_the_others(root):
    text = message(config(root, ('disc', 'cone', 'box', 'star'), outputs=4))
    assert "'cone'" in text and 'train.json' in text and "'box', the 2 of the config, is label 1" in text
    assert "metainfo=dict(classes=('disc', 'box', 'star'))" in text and 'num_classes=3' in text
    assert names_by_label(root, 'train', ('disc', 'cone', 'box', 'star')) == ['disc', 'box', 'star']


@pytest.mark.parametrize(
    ('classes', 'words'), [(('disc', 'box', 'star', 'disc'), "'disc' twice"), (('disc', 2, 'star'), 'tuple of texts')]
)
def test_lists_of_classes_that_cannot_be(root, classes, words):
    assert words in message(config(root, classes))


def test_names_with_commas_and_blanks_are_only_names(root, capsys):
    odd = ('disc, big (red)', ' box', 'star ')
    for name in ('train', 'val'):
        write(root / f'{name}.json', content(odd, dict(zip(odd, (3, 1, 7), strict=True))))
    check_data(config(root, odd))
    assert capsys.readouterr().err == ''
    text = message(config(root))
    assert "classes=('disc, big (red)', ' box', 'star ')" in text


@pytest.mark.parametrize('wrap', ['plain', 'repeat', 'nested'])
def test_classes_in_another_order_take_that_of_the_labels(root, wrap, capsys):
    palette = [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    cfg = config(root, NAMES[::-1], wrap)
    for dataset in (cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        dataset.metainfo.palette = palette
    check_data(cfg)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and 'train_dataloader' in err and repr(NAMES) in err
    metainfo = cfg.val_dataloader.dataset.metainfo
    assert list(metainfo.classes) == names_by_label(root, 'val', NAMES[::-1]) == list(NAMES)
    assert metainfo.palette == palette[::-1]  # every class keeps its colour


def test_the_tool_says_what_training_says(root, tmp_path, capsys):
    write(root / 'val.json', content(NAMES[::-1]))
    file = tmp_path / 'config.py'
    config(root).dump(str(file))
    assert check_dataset(str(file)) == 1
    assert message(config(root)) in capsys.readouterr().out
    write(root / 'val.json', content())
    assert check_dataset(str(file)) == 0


# -- checkpoints -------------------------------------------------------------------------------------------------


def checkpoint(*classes: str, known: bool = False) -> dict:
    return dict(meta=dict(dataset_meta=dict(classes=classes, classes_by_label=known)))


def test_a_checkpoint_is_compared_with_the_test_set(root):
    cfg = config(root)
    check_data(cfg, ('test',), TrainedLabels(NAMES))
    for other in (NAMES[::-1], ('disc', 'star', 'box'), ('disc', 'box', 'star', 'cone'), ('box', 'disc', 'cone')):
        text = message(config(root), 'test', trained=TrainedLabels(other))
        assert 'val.json' in text
    paste(message(config(root), 'test', trained=TrainedLabels(NAMES[::-1])))
    check_data(config(root), ('test',), TrainedLabels(NAMES[::-1]))


def test_classes_that_a_checkpoint_only_spells_otherwise_are_one_line(root, capsys):
    check_data(config(root), ('test',), TrainedLabels(('disc', 'square', 'star')))
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "'square' there, 'box' here" in err


def test_weights_that_training_starts_from_may_have_had_other_labels(root, capsys):
    check_data(config(root), ('train', 'val'), TrainedLabels(('a', 'b')))
    assert 'starts from' in capsys.readouterr().err


def test_the_training_file_tells_the_labels_of_a_checkpoint_of_the_same_config(root):
    reverse = NAMES[::-1]
    cfg = config(root, reverse, 'nested')
    assert trained_labels(cfg, checkpoint(*reverse)) == TrainedLabels(NAMES, str(root / 'train.json'))
    assert trained_labels(cfg, checkpoint(*NAMES)) == TrainedLabels(NAMES)  # of another config: what it says
    assert trained_labels(cfg, checkpoint(*reverse, known=True)) == TrainedLabels(reverse)
    (root / 'train.json').unlink()
    assert trained_labels(cfg, checkpoint(*reverse)) == TrainedLabels(reverse)


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(CLASSES=NAMES)),
        dict(CLASSES=NAMES),
        dict(dataset_meta=[dict(classes=list(NAMES)), dict(classes=('other',))]),
    ],
)
def test_every_version_of_mmdet_has_its_own_place_for_classes(root, meta, tmp_path):
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'a.pth')
    assert checkpoint_labels(config(root), str(tmp_path / 'a.pth')) == TrainedLabels(NAMES, str(root / 'train.json'))


def test_a_checkpoint_that_does_not_say_its_labels_is_told_from_one_that_does(root, capsys):
    by_file = TrainedLabels(NAMES, str(root / 'train.json'))
    check_data(config(root, NAMES[::-1]), ('test',), by_file)
    assert f'taken to be trained on {root / "train.json"}' in capsys.readouterr().err
    for cfg, trained in ((config(root, NAMES[::-1]), TrainedLabels(NAMES)), (config(root), by_file)):
        check_data(cfg, ('test',), trained)
        assert 'taken to be' not in capsys.readouterr().err


def test_no_classes_are_nothing_to_compare(root):
    for content_ in ({}, dict(meta=None), dict(meta={}), dict(meta=dict(dataset_meta={}))):
        assert trained_labels(config(root), content_) is None


@pytest.mark.parametrize(
    'text',
    [
        json.dumps(content()),
        json.dumps(
            dict(categories=content()['categories'], info=dict(note='"categories": [1]'), images=[], pad='é' * 3000000)
        ),
        json.dumps(dict(info=dict(categories=[dict(name='x')]), categories=content()['categories'])),
        json.dumps(content(), indent=2).replace('disc', '\\u0064isc'),
    ],
)
def test_categories_are_read_alone(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    assert read_categories(str(tmp_path / 'a.json')) == list(NAMES)


@pytest.mark.parametrize('text', ['', '[]', '{"images": []}', '{"categories": [1]}', '{"categories": [{"name": "a"'])
def test_files_without_categories(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(DataError, match='a.json'):
        read_categories(str(tmp_path / 'a.json'))
