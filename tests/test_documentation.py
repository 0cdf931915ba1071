"""The README and docs say what the code does: commands, files, config snippets and the configuration reference."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from small_models import build, family

from moe_det.routing import find_routers

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
STARTED = (ROOT / 'docs' / 'getting_started.md').read_text(encoding='utf-8')
TABLE = (ROOT / 'configs' / 'README.md').read_text(encoding='utf-8')
SNIPPETS = re.findall(r'```python\n(.*?)```', STARTED, flags=re.DOTALL)


def _load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tiny(model: dict) -> dict:
    """A detector small enough to build in a moment; the MoE keys stay as they are."""
    model.backbone.update(depth=50, base_channels=4, init_cfg=None)
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=8)
    model.bbox_head.update(in_channels=8, feat_channels=8, num_classes=3)
    return model


def test_files_that_the_documentation_names_exist():
    pages = [README, TABLE, *(page.read_text(encoding='utf-8') for page in (ROOT / 'docs').glob('*.md'))]
    named = set()
    for text in pages:
        named |= set(
            re.findall(r'\b((?:tests|tools|docs|configs|benchmarks)/[\w/.-]+\.(?:py|sh|md|svg|png|jpg))', text)
        )
    assert {'tools/train.py', 'docs/architecture.md', 'configs/retinanet_moe_soft.py'} <= named
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert not missing


def test_links_lead_somewhere():
    pages = [
        ROOT / 'README.md',
        ROOT / 'CONTRIBUTING.md',
        ROOT / 'configs' / 'README.md',
        *(ROOT / 'docs').rglob('*.md'),
    ]
    broken, links = [], 0
    for page in pages:
        for link in re.findall(r'\]\((?!https?:|#)([^)#\s]+)', page.read_text(encoding='utf-8')):
            links += 1
            if not (page.parent / link).exists():
                broken.append(f'{page.name}: {link}')
    assert not broken and links > 20


def test_every_config_is_in_the_table_and_the_other_way_round():
    # one row may name a family: classification/mnist_*.py
    named = re.findall(r'`((?:retinanet|shapes/|fine_tune/|classification/)[\w*]+\.py)`', TABLE)
    folder = ROOT / 'configs'
    found = {name: {path.relative_to(folder).as_posix() for path in folder.glob(name)} for name in named}
    assert not [name for name, paths in found.items() if not paths]
    present = {path.relative_to(folder).as_posix() for place in ('*.py', '*/*.py') for path in folder.glob(place)}
    assert set().union(*found.values()) == {name for name in present if not name.startswith('_base_/')}


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    text = README + STARTED
    targets = set(re.findall(r'\bmake ([\w-]+)`', text)) | set(re.findall(r'^ {4}make ([\w-]+)\b', text, re.M))
    assert {'demo', 'test', 'test-openmmlab'} <= targets
    assert all(re.search(rf'^{target}:', makefile, re.M) for target in targets)


def test_overlay_of_the_readme_builds_experts(tmp_path):
    assert re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL) == SNIPPETS[:1]
    (tmp_path / 'mine.py').write_text(SNIPPETS[0], encoding='utf-8')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    model = build(_tiny(cfg.model))
    assert set(find_routers(model)) == {'bbox_head.cls', 'bbox_head.reg'}
    assert cfg.custom_hooks == [{'type': 'MoEHook'}]


OVERLAYS = re.findall(r'^# .*\n(model = (?:.*\n)(?: +.*\n)*)', SNIPPETS[1], flags=re.MULTILINE)


def test_paths_that_are_shown_build_experts():
    cfg, overlay = family('dino/dino-4scale_r50_8xb2-12e_coco.py').model, {}
    exec(OVERLAYS[0], overlay)
    assert overlay['model']['detector'] == cfg.type
    assert set(find_routers(build({**cfg, **overlay['model']}))) == {'decoder.layers.0.ffn', 'decoder.layers.1.ffn'}


@pytest.mark.parametrize('number', range(3))
def test_slots_that_are_shown_build_experts(tmp_path, number):
    assert len(OVERLAYS) == 4
    text = "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n" + OVERLAYS[number + 1]
    (tmp_path / 'mine.py').write_text(text, encoding='utf-8')
    model = build(_tiny(Config.fromfile(tmp_path / 'mine.py').model))
    layers = set(find_routers(model))
    wanted = ('bbox_head.cls_convs.0.conv', 'backbone.layer4.0.moe_block.moe', 'backbone.layer4')[number]
    assert any(layer.startswith(wanted) for layer in layers), layers


def test_lists_are_extended_as_it_is_shown(tmp_path):
    text = f"_base_ = '{ROOT / 'configs' / 'retinanet_moe_soft.py'}'\n" + SNIPPETS[2]
    (tmp_path / 'mine.py').write_text(text.replace("'my_project'", "'math'"), encoding='utf-8')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.custom_imports['imports'] == ['moe_det', 'math']
    names = ['MoEHook', 'ExactResumeHook', 'SkipBadImagesHook', 'FiniteHook', 'MyHook']
    assert [hook['type'] for hook in cfg.custom_hooks] == names


def test_configuration_reference_is_up_to_date():
    script = _load_script(ROOT / 'tools' / 'misc' / 'write_config_reference.py')
    assert script.main(['--check']) == 0, 'run python tools/misc/write_config_reference.py'


def test_configuration_reference_names_every_key_and_class():
    from moe_det.layers import MoESettings
    from moe_det.registry import REGISTERED

    page = (ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8')
    names = [path.split(':')[1] for paths in REGISTERED.values() for path in paths]
    names += list(MoESettings.__dataclass_fields__)
    names += ['branches', 'placement', 'width', 'shared_gate', 'stages', 'residual']
    assert [name for name in names if f'`{name}`' not in page and f"'{name}'" not in page] == []
