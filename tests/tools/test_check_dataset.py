"""Ten and more faults planted into a small data set: the tool finds each, and training ends in words or in a count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

HOOKS = """
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
custom_hooks = [dict(type='SkipBadImagesHook', max_images=2), dict(type='FiniteHook')]
"""


@pytest.fixture
def data(tiny_coco, tmp_path) -> Path:
    """A copy of the data set that a test may damage: four 64-pixel images with one object each, per split."""
    return Path(shutil.copytree(tiny_coco, tmp_path / 'tiny'))


@pytest.fixture
def config(tiny_config) -> str:
    """A config with the hooks that cope with damaged images and stop at NaN."""
    with open(tiny_config, 'a') as file:
        file.write(HOOKS)
    return str(tiny_config)


@pytest.fixture
def check(tool, data, config, capsys):
    """``check(*arguments)`` runs the tool on the config: exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        status = tool('misc/check_dataset.py').main([config, '--data-root', str(data), '--workers', '0', *arguments])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def train(tool, data, config, tmp_path, capsys):
    """``train(*arguments)`` runs train.py for one epoch without validation: exit status, stdout and log, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        options = ['--work-dir', str(tmp_path / 'work'), '--cfg-options', 'train_cfg.val_interval=5']
        status = tool('train.py').main([config, '--data-root', str(data), *arguments, *options])
        printed = capsys.readouterr()
        logs = [path.read_text() for path in (tmp_path / 'work').rglob('*.log')]
        return status, printed.out + ''.join(logs), printed.err

    return run


def in_json(change):
    def plant(data: Path) -> None:
        path = data / 'annotations' / 'train.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return plant


def annotation(**values):
    return in_json(lambda content: content['annotations'][1].update(values))


def image(write):
    return lambda data: write(data / 'train' / '2.png')


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).convert('RGB').resize((64, 48)).save(path, 'JPEG', exif=exif)


def rotate(data: Path) -> None:
    image(rotated)(data)
    in_json(lambda content: content['images'][1].update(height=48))(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def in_two_ways(data: Path) -> None:
    in_json(lambda content: content['images'].append(dict(content['images'][1], file_name='other.png')))(data)
    shutil.copy(data / 'train' / '2.png', data / 'train' / 'other.png')


REFUSED = {
    'missing_key': in_json(lambda content: content['annotations'][1].pop('area')),
    'non_finite': annotation(bbox=[float('nan'), 4, 10, 10]),
    'number_as_text': annotation(bbox=['8', 4, 10, 10]),
    'unknown_category': annotation(category_id=77),
    'duplicate_annotation_id': annotation(id=1),
    'duplicate_image_id': in_two_ways,
    'bad_box': annotation(bbox=[1, 2, 3]),
    'image_size': in_json(lambda content: content['images'][1].update(width=640)),
    'exif_rotated': rotate,
}
SKIPPED = {
    'missing_image': image(Path.unlink),
    'empty_image': image(lambda path: path.write_bytes(b'')),
    'truncated_image': image(cut),
    'undecodable_image': image(lambda path: path.write_text('404: Not Found')),
}
NOTED = {
    'zero_box': annotation(bbox=[8, 4, 0, 10]),
    'negative_box': annotation(bbox=[8, 4, -5, 10]),
    'outside_image': annotation(bbox=[100, 4, 10, 10]),
    'orphan_annotation': annotation(image_id=55),
    'greyscale': image(lambda path: Image.open(path).convert('L').save(path)),
    'cmyk': image(lambda path: Image.open(path).convert('CMYK').save(path, 'JPEG')),
    'deep': image(lambda path: cv2.imwrite(str(path), np.full((64, 64, 3), 9000, np.uint16))),
}


def test_a_clean_data_set_is_said_to_be(check):
    status, text = check('--strict', '--decode')
    assert status == 0 and text.count('  clean') == 2  # training and validation
    assert '4 images, 4 annotations, 2 categories' in text and text.rstrip().endswith('copes with them)')


@pytest.mark.parametrize('kind', [*REFUSED, *SKIPPED, *NOTED])
def test_the_tool_finds_each_planted_fault_by_place_and_id(check, data, kind):
    plant = {**REFUSED, **SKIPPED, **NOTED}[kind]
    plant(data)
    status, text = check()
    assert status == (0 if kind in NOTED else 1)
    lines = text.splitlines()
    (found,) = [number for number, line in enumerate(lines) if f'[{kind}]' in line]
    assert lines[found].startswith('  note: 1 x ' if kind in NOTED else '  error: 1 x ')
    assert '(id 2)' in lines[found + 1] or '(id 1)' in lines[found + 1]
    assert len([line for line in lines if line.startswith(('  error: ', '  note: '))]) == 1, text  # and nothing else
    assert check('--strict')[0] == 1


def test_ten_faults_at_once_are_all_found_and_listed_in_the_full_report(check, data, tmp_path):
    def change(content: dict) -> None:
        first, second, third, fourth = content['annotations']
        first.update(bbox=[float('inf'), 4, 10, 10])
        second.update(category_id='2')
        third.pop('bbox')
        fourth.update(id=first['id'], bbox=[8, 4, 0, 10])
        content['annotations'].append(dict(first, id=50, image_id=99, bbox=[1, 1, 9, 9]))
        content['images'][2].update(height=48)

    in_json(change)(data)
    (data / 'train' / '1.png').write_bytes(b'')
    image(cut)(data)
    (data / 'train' / '4.png').unlink()
    report = tmp_path / 'report.json'
    status, text = check('--json', str(report))
    kinds = {'non_finite', 'id_type', 'missing_key', 'duplicate_annotation_id', 'zero_box', 'orphan_annotation'}
    kinds |= {'image_size', 'empty_image', 'truncated_image', 'missing_image'}
    assert len(kinds) == 10 and status == 1
    assert all(f'[{kind}]' in text for kind in kinds)
    content = json.loads(report.read_text(), parse_constant=pytest.fail)  # strict JSON: no NaN
    train, val = content['files']
    assert {problem['kind'] for problem in train['problems']} == kinds and val['problems'] == []
    assert (content['errors'], content['notes']) == (8, 2)
    (missing,) = [problem for problem in train['problems'] if problem['kind'] == 'missing_image']
    assert missing['entries'][0]['id'] == 4 and missing['entries'][0]['file'] == '4.png'


@pytest.mark.parametrize('content', [b'', b'{"images": [{"id": 1, "fi', b'not json', b'[]', b'\xff\xfe\x00'])
def test_files_that_are_no_annotation_file_are_a_problem_with_its_place(check, data, content):
    (data / 'annotations' / 'train.json').write_bytes(content)
    status, text = check()
    assert status == 1 and '[unreadable_json]' in text and str(data / 'annotations' / 'train.json') in text


@pytest.mark.parametrize('kind', REFUSED)
def test_training_refuses_what_would_make_it_fail_or_learn_nonsense(train, data, kind, tmp_path):
    REFUSED[kind](data)
    status, _, err = train()
    assert status == 2 and err.count('error: ') == 1 and 'Traceback' not in err
    assert f'[{kind}]' in err and 'tools/misc/check_dataset.py' in err and '--no-data-check' in err
    assert not (tmp_path / 'work').exists()


def test_training_refuses_a_truncated_file_with_the_place_where_it_ends(train, data):
    path = data / 'annotations' / 'train.json'
    path.write_bytes(path.read_bytes()[:200])
    status, _, err = train()
    assert status == 2 and 'truncated' in err and 'byte 200' in err and 'Traceback' not in err


def test_training_skips_two_unreadable_images_and_refuses_three(train, data):
    SKIPPED['empty_image'](data)
    (data / 'train' / '3.png').unlink()
    status, text, err = train()
    assert status == 0 and 'Traceback' not in err
    assert '[empty_image]' in err and '[missing_image]' in err and 'max_images=2' in err  # said before it starts
    assert '2.png cannot be read and is skipped: the file is empty' in text
    assert '3.png cannot be read and is skipped: no such file' in text
    assert '2 files so far' in text
    (data / 'train' / '4.png').write_text('404: Not Found')
    status, _, err = train()
    assert status == 2 and err.count('error: ') == 1 and '[undecodable_image]' in err and 'Traceback' not in err


def test_training_takes_what_mmdet_copes_with_and_says_so(train, data):
    annotation(bbox=[8, 4, 0, 10])(data)
    NOTED['cmyk'](data)
    status, text, err = train()
    assert status == 0 and '1 x a box has no width or no height; ignored in training' in err
    assert 'Training is done' in text


def test_a_damaged_validation_image_is_refused_before_training(train, data):
    (data / 'val' / '3.png').write_bytes(b'')
    status, _, err = train()
    assert status == 2 and 'val_dataloader' in err and '[empty_image]' in err


def test_without_the_check_a_bad_number_stops_training_with_the_image(train, data, tmp_path):
    annotation(bbox=[8, 4, 3e38, 3e38])(data)
    unclipped = 'train_dataloader.dataset.pipeline.2.clip_object_border=False'  # else Resize takes it to the border
    status, _, err = train('--no-data-check', '--cfg-options', unclipped)
    assert status == 2 and err.count('error: ') == 1 and 'Traceback' not in err
    assert 'loss_bbox=' in err and 'id 2' in err and 'iteration' in err
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_one_annotation_file_without_and_with_its_images(tool, data, capsys):
    main = tool('misc/check_dataset.py').main
    path, folder = str(data / 'annotations' / 'train.json'), str(data / 'train')
    SKIPPED['empty_image'](data)
    assert main([path]) == 0
    assert 'images not looked at (--images DIR)' in capsys.readouterr().out
    assert main([path, '--images', folder]) == 1
    assert '[empty_image]' in capsys.readouterr().out
    assert main(['annotations/train.json', '--images', 'train', '--data-root', str(data)]) == 1


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['gone.json'], 'gone.json'),
        (['gone.py'], 'gone.py'),
        (['{json}', '--images', 'nowhere'], 'nowhere'),
        (['{json}', '--cfg-options', 'a=1'], '--cfg-options'),
        (['{config}'], 'data folder'),
        (['{config}', '--images', 'x'], '--images x'),
        (['{json}', '--json', '{json}/r.json'], 'train.json/r.json: cannot be written'),  # below a file
    ],
)
def test_what_cannot_be_checked_is_status_2_with_one_message(fails, data, config, arguments, words):
    given = [item.format(json=data / 'annotations' / 'train.json', config=config) for item in arguments]
    assert words in fails('misc/check_dataset.py', *given)
