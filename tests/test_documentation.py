"""The README and docs say what the code does: commands, files, config snippets and the configuration reference."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import mmdet
import mmdet.registry
import pytest
from mmengine.config import Config
from mmengine.registry import Registry
from small_models import build, family

from moe_det import layers
from moe_det.commands import COMMANDS
from moe_det.registry import REGISTERED
from moe_det.routing import find_routers

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
STARTED = (ROOT / 'docs' / 'getting_started.md').read_text(encoding='utf-8')
TABLE = (ROOT / 'configs' / 'README.md').read_text(encoding='utf-8')
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
    for path in [*ROOT.glob('*.md'), ROOT / 'configs' / 'README.md', *(ROOT / 'docs').rglob('*.md')]
}
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
    text = '\n'.join(PAGES.values())
    named = set(re.findall(r'\b((?:tests|tools|docs|configs|benchmarks)/[\w/.-]+\.(?:py|sh|md|svg|png|jpg))', text))
    assert {'tools/train.py', 'docs/architecture.md', 'configs/retinanet_moe_soft.py'} <= named
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    # paths below a folder that the page speaks of; the demo writes the one that is left out, mmdet has the other
    folders = [ROOT, ROOT / 'moe_det', ROOT / 'configs', Path(mmdet.__file__).parent / '.mim' / 'configs']
    quoted = set(re.findall(r'`((?:[\w.*-]+/)+[\w.*-]+\.(?:py|sh|md|json))`', text))
    quoted -= {'work_dirs/demo/summary.json', 'demo/image_demo.py'}
    assert {'routing/router.py', 'dino/dino-4scale_r50_8xb2-12e_coco.py'} <= quoted
    missing += [name for name in sorted(quoted) if not any(any(folder.glob(name)) for folder in folders)]
    assert not missing


def test_commands_that_are_named_exist():
    named = {name for page, text in PAGES.items() for name in re.findall(r'\bmoe-det ([a-z][a-z-]+)', text)}
    assert {'train', 'report', 'configs'} <= named <= set(COMMANDS)


BLOCKS = [(page, code) for page, text in PAGES.items() for code in re.findall(r'```python\n(.*?)```', text, flags=re.S)]


@pytest.mark.parametrize(('page', 'code'), BLOCKS, ids=[f'{page}-{n}' for n, (page, _) in enumerate(BLOCKS)])
def test_python_blocks_compile_and_name_what_exists(page, code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    known = {path.rpartition(':')[2] for paths in REGISTERED.values() for path in paths} | {*layers.__all__}
    registries = [value for value in vars(mmdet.registry).values() if isinstance(value, Registry)]
    for name in re.findall(r"(?:type|detector)='(\w+)'", code):
        assert name in known or name == 'MyHook' or any(name in registry for registry in registries), name
    for name in re.findall(r"'mmdet::([^']+)'", code):
        assert (Path(mmdet.__file__).parent / '.mim' / 'configs' / name).is_file(), name


def test_readme_stays_short():
    assert sum(any(map(str.isalnum, word)) for word in README.split()) <= 800


def test_links_lead_somewhere():
    broken, links = [], 0
    for page, text in PAGES.items():
        for link in re.findall(r'\]\((?!https?:|#)([^)#\s]+)', text):
            links += 1
            if not ((ROOT / page).parent / link).exists():
                broken.append(f'{page}: {link}')
    assert not broken and links > 20


def test_every_config_is_in_the_table_and_the_other_way_round():
    # one row may name a family: classification/mnist_*.py
    named = re.findall(r'`((?:retinanet|shapes/|fine_tune/|classification/)[\w*]+\.py)`', TABLE)
    folder = ROOT / 'configs'
    found = {name: {path.relative_to(folder).as_posix() for path in folder.glob(name)} for name in named}
    assert not [name for name, paths in found.items() if not paths]
    present = {path.relative_to(folder).as_posix() for place in ('*.py', '*/*.py') for path in folder.glob(place)}
    assert set().union(*found.values()) == {name for name in present if not name.startswith('_base_/')}


def test_no_page_holds_an_unresolved_merge():
    assert not [page for page, text in PAGES.items() if re.search(r'^(<{7}|>{7}) ', text, re.M)]


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
    found = set(find_routers(model))
    wanted = ('bbox_head.cls_convs.0.conv', 'backbone.layer4.0.moe_block.moe', 'backbone.layer4')[number]
    assert any(layer.startswith(wanted) for layer in found), found


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

    page = (ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8')
    names = [path.split(':')[1] for paths in REGISTERED.values() for path in paths]
    names += list(MoESettings.__dataclass_fields__)
    names += ['branches', 'placement', 'width', 'shared_gate', 'stages', 'residual']
    assert [name for name in names if f'`{name}`' not in page and f"'{name}'" not in page] == []
