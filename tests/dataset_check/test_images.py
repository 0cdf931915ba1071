"""The check of image files: one file of each kind, as Pillow or OpenCV write it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from moe_det.dataset_check import ImageEntry, Reading, Report, check_images
from moe_det.dataset_check.images import look_at_image, missing_files

WIDTH, HEIGHT = 48, 32
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encoded(form: str = 'JPEG', mode: str = 'RGB', orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    extra = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        extra['exif'] = exif
    Image.fromarray(PIXELS).convert(mode).save(buffer, form, **extra)
    return buffer.getvalue()


def sixteen_bits(suffix: str, grey: bool) -> bytes:
    pixels = PIXELS[..., 0] if grey else PIXELS
    return cv2.imencode(suffix, pixels.astype(np.uint16) * 256)[1].tobytes()


def kinds(path: Path, size=(WIDTH, HEIGHT), decode: bool = False, reading: Reading | None = None) -> list[str]:
    return [kind for kind, _ in look_at_image(str(path), size, decode, reading or Reading())]


FILES = {
    'clean.jpg': (encoded(), []),
    'clean.png': (encoded('PNG'), []),
    'clean.webp': (encoded('WEBP'), []),
    'with bytes behind its end.jpg': (encoded() + bytes(500), []),
    'empty.jpg': (b'', ['empty_image']),
    'text.jpg': (b'404: Not Found', ['undecodable_image']),
    'page.png': (b'<html><body>sign in</body></html>', ['undecodable_image']),
    'half.jpg': (encoded()[: len(encoded()) // 2], ['truncated_image']),
    'half.png': (encoded('PNG')[: len(encoded('PNG')) // 2], ['truncated_image']),
    'without its last bytes.jpg': (encoded()[:-20], ['truncated_image']),
    'header alone.png': (encoded('PNG')[:40], ['truncated_image']),
    'cmyk.jpg': (encoded(mode='CMYK'), ['cmyk']),
    'grey.jpg': (encoded(mode='L'), ['greyscale']),
    'grey alpha.png': (encoded('PNG', 'LA'), ['greyscale']),
    '16 bits.png': (sixteen_bits('.png', grey=False), ['deep']),
    '16 bits.tiff': (sixteen_bits('.tiff', grey=False), ['deep']),
    '16 bits grey.png': (sixteen_bits('.png', grey=True), ['deep', 'greyscale']),
    'turned.jpg': (encoded(orientation=6), ['exif_rotated']),
    'upside down.jpg': (encoded(orientation=3), ['exif']),
    'unturned.jpg': (encoded(orientation=1), []),
}


@pytest.mark.parametrize('decode', [False, True], ids=['headers', 'decoded'])
@pytest.mark.parametrize('name', FILES)
def test_one_file_of_each_kind(tmp_path, name, decode):
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert kinds(tmp_path / name, decode=decode) == expected


def test_damage_inside_a_file_is_seen_by_decoding_alone(tmp_path):
    content = bytearray(encoded('PNG'))
    content[60:200] = bytes(140)  # within the first compressed chunk; header and end are whole
    (tmp_path / 'a.png').write_bytes(content)
    assert kinds(tmp_path / 'a.png') == []
    assert kinds(tmp_path / 'a.png', decode=True) == ['undecodable_image']


def test_sizes_are_compared_with_what_training_decodes(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(encoded())
    assert kinds(tmp_path / 'a.jpg', (WIDTH, HEIGHT + 1)) == ['image_size']
    assert kinds(tmp_path / 'a.jpg', (HEIGHT, WIDTH)) == ['image_size']
    assert kinds(tmp_path / 'a.jpg', None) == []
    (tmp_path / 'turned.jpg').write_bytes(encoded(orientation=8))
    # the annotation file has the size of the turned image: the boxes fit
    assert kinds(tmp_path / 'turned.jpg', (HEIGHT, WIDTH)) == ['exif']
    # a config that does not turn images fits an annotation file that does not either
    stored = Reading(color_type='color_ignore_orientation')
    assert kinds(tmp_path / 'turned.jpg', (WIDTH, HEIGHT), reading=stored) == []
    assert kinds(tmp_path / 'turned.jpg', (HEIGHT, WIDTH), reading=stored) == ['image_size']


@pytest.mark.parametrize('name', ['gone.jpg', 'no/folder.jpg', 'nul\0.jpg', 'lone \ud800.jpg', 'n' * 300, '.'])
def test_names_of_no_file(tmp_path, name):
    assert kinds(tmp_path / name) in (['missing_image'], ['unreadable_file'])
    assert missing_files(str(tmp_path), [name]) == ([] if name == '.' else [name])


def test_missing_files_are_found_one_by_one_and_in_the_listing_of_a_folder(tmp_path):
    (tmp_path / 'sub').mkdir()
    present = [f'{n}.jpg' for n in range(400)] + [f'sub/{n}.jpg' for n in range(400)] + ['./1.jpg']
    for name in present:
        (tmp_path / name).touch()
    absent = ['x.jpg', 'sub/x.jpg', 'sub/sub/1.jpg', '1.JPG']
    assert missing_files(str(tmp_path), present[:5] + absent) == absent
    assert sorted(missing_files(str(tmp_path), present + absent)) == sorted(absent)
    other = [f'gone/{n}.jpg' for n in range(300)]
    assert sorted(missing_files(str(tmp_path), present + other)) == sorted(other)


def test_processes_find_what_one_process_finds_in_the_same_order(tmp_path):
    names = []
    for number in range(70):
        content = list(FILES.values())[number % len(FILES)][0]
        names.append(f'{number}.bin')
        (tmp_path / names[-1]).write_bytes(content)
    os.remove(tmp_path / names[33])
    entries = [ImageEntry(n, 100 + n, name, (WIDTH, HEIGHT)) for n, name in enumerate(names)]
    reports = []
    for workers in (0, 2):
        report = Report(keep=None)
        check_images(str(tmp_path), entries, report, workers=workers, decode=True)
        reports.append(report)
    assert reports[0].examples == reports[1].examples
    assert reports[0].counts['missing_image'] == 1
    (example,) = reports[0].examples['missing_image']
    assert (example.where, example.id, example.file) == ('images[33]', 133, '33.bin')


def test_images_of_coco_are_clean(shared_data):
    folder = shared_data / 'coco-small' / 'val2017'
    names = sorted(os.listdir(folder))[:40]
    report = Report()
    check_images(str(folder), [ImageEntry(n, n, name, None) for n, name in enumerate(names)], report)
    assert not report.kinds(errors=True)
