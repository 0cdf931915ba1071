"""``moe-det``: its list of commands, names of packaged configs and copies of them, messages that fit the caller."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from moe_det import called, cli
from moe_det.commands import COMMANDS
from moe_det.common.config_file import find_config
from moe_det.errors import MoEConfigError
from moe_det.packaged_configs import config_names, copy_config, packaged_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'moe_det'


def test_every_command_is_listed_and_answers_without_torch():
    modules = {path.stem for path in (PACKAGE / 'commands').glob('*.py')} - {'__init__', 'arguments', 'start'}
    assert {module for module, _ in COMMANDS.values()} == modules
    probe = (
        'import sys\nfrom moe_det import cli\n'
        'for name in sys.argv[1:]:\n'
        '    try:\n        cli.main([name, "--help"])\n'
        '    except SystemExit as end:\n        assert not end.code\n'
        "assert cli.main(['--help']) == 0\n"
        "sys.exit('torch' in sys.modules or 'mmengine' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, '-c', probe, *COMMANDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, (_, what) in COMMANDS.items():
        assert f'usage: moe-det {name} ' in done.stdout
        assert re.search(rf'^  {name} +{re.escape(what)}$', done.stdout, re.MULTILINE)


@pytest.mark.parametrize(('word', 'near'), [('tran', 'train'), ('reprot', 'report'), ('make_shapes', 'make-shapes')])
def test_a_wrong_command_is_answered_with_the_near_one(capsys, word, near):
    assert cli.main([word]) == 2
    assert f"Did you mean '{near}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['health', 'c.py', 'c.pth', '--limit', '0'], 'argument --limit: expected an integer >= 1, got 0'),
        (['sweep', 'c.py', 'c.pth', '--top-k', 'two'], "argument --top-k: invalid int value: 'two'"),
        (['report', 'c.py', 'c.pth', '--seed', '1.5'], 'argument --seed: expected an integer >= 0, got 1.5'),
        (['health', 'c.py', 'c.pth', '--living-share', '1'], '--living-share: expected a number >= 0 and < 1, got 1'),
        (['upcycle', 'c.py', 'c.pth', 'o.pth', '--noise', 'nan'], '--noise: expected a number >= 0, got nan'),
        (
            ['test', 'c.py', 'c.pth', '--out', 'o.json'],
            '--out: expected a name that ends in .pkl or .pickle, got o.json',
        ),
        (['vis', 'c.py', 'c.pth', 'i.jpg', '--out', 'o.gif'], 'a name that ends in .png, .svg or .pdf, got o.gif'),
    ],
)
def test_a_wrong_argument_is_one_message(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_commands_in_messages_are_what_the_user_called():
    assert called.command('test', 'a b.py') == "moe-det test 'a b.py'"
    with called.called('python -m moe_det'):
        assert called.command('test', 'a.py') == 'python -m moe_det test a.py'
        with called.called(scripts={'test': os.path.abspath('tools/test.py')}):
            assert called.command('test', 'a.py') == 'python tools/test.py a.py'
    assert called.command('test') == 'moe-det test'


def _texts(tree: ast.AST) -> list[str]:
    """Every text of a module that is no docstring."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def test_no_message_of_the_package_names_a_path_of_the_checkout():
    of_checkout = re.compile(r'\b(tools|configs|docs|benchmarks|tests)/[\w/]|\bmake (demo|setup|test)\b')
    found = {
        f'{path.relative_to(ROOT)}: {text}'
        for path in PACKAGE.rglob('*.py')
        for text in _texts(ast.parse(path.read_text(encoding='utf-8')))
        if of_checkout.search(text.replace('.mim/configs/', ''))
    }
    assert not found


def test_packaged_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / 'configs' / 'shapes' / 'retinanet_moe_soft.py'
    for name in ('shapes/retinanet_moe_soft', 'shapes/retinanet_moe_soft.py', 'moe_det::shapes/retinanet_moe_soft.py'):
        assert Path(find_config(name)) == file
    assert packaged_config('../setup') is None and packaged_config('_base_') is None
    (tmp_path / 'retinanet_moe_soft.py').write_text('a = 1\n')  # a file of the user's comes first
    assert find_config('retinanet_moe_soft.py') == 'retinanet_moe_soft.py'


@pytest.mark.parametrize(
    'name', ['retinanet_moe_hard', 'shapes/retinanet_moe_distilled', 'classification/mnist_distilled_importance']
)
def test_a_copy_means_what_the_config_means(tmp_path, name):
    entry, *_ = copy_config(name, tmp_path)
    assert entry == tmp_path / Path(name).with_suffix('.py').name
    copied, original = (Config.fromfile(path).to_dict() for path in (entry, ROOT / 'configs' / f'{name}.py'))
    assert copied == original
    for path in tmp_path.rglob('*.py'):
        assert all('::' in base or (path.parent / base).is_file() for base in Config._get_base_files(str(path)))


def test_a_copy_replaces_no_file_of_other_content(tmp_path):
    copy_config('retinanet_moe_soft', tmp_path)
    copy_config('retinanet_moe_hard', tmp_path)  # on the same bases
    (tmp_path / 'retinanet_moe_soft.py').write_text('mine = 1\n')
    with pytest.raises(MoEConfigError, match='retinanet_moe_soft.py: is there already with other content'):
        copy_config('retinanet_moe_hard', tmp_path)
    assert (tmp_path / 'retinanet_moe_soft.py').read_text() == 'mine = 1\n'


def test_bases_may_name_configs_of_the_package(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'moe_det::retinanet_moe_soft.py'\nmodel = dict(bbox_head=dict(moe=dict(top_k=1)))\n"
    )
    mine, top1 = (Config.fromfile(path) for path in (tmp_path / 'mine.py', ROOT / 'configs' / 'retinanet_moe_top1.py'))
    assert mine.to_dict() == top1.to_dict()


def test_the_index_of_models_names_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = [m for path in index['Import'] for m in yaml.safe_load((ROOT / path).read_text())['Models']]
    assert sorted(model['Config'] for model in models) == sorted(f'configs/{name}.py' for name in config_names())
    assert len({model['Name'] for model in models}) == len(models)


def needs_mmdet(module: Path) -> bool:
    """Whether a module imports a package of OpenMMLab's when it is imported."""
    tree = ast.parse(module.read_text(encoding='utf-8'))
    absolute = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    names = absolute + [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return any(name.partition('.')[0] in ('mmcv', 'mmdet', 'mmengine') for name in names)


def test_packages_that_need_mmdet_register_first_whichever_of_their_modules_is_imported():
    # attacks: its plan is read by commands that answer at once; compat: what registering itself begins with
    others = {'attacks', 'compat'}
    packages = [path.parent for path in PACKAGE.glob('*/__init__.py') if path.parent.name not in others]
    needing = [package for package in packages if any(map(needs_mmdet, package.glob('*.py')))]
    assert {'hooks', 'layers', 'dataset_check'} <= {package.name for package in needing}
    for package in needing:
        first = ast.parse((package / '__init__.py').read_text(encoding='utf-8')).body[1]  # after the docstring
        assert ast.unparse(first).startswith('from .. import registry'), package.name


WITHOUT_MMDET = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmdet', 'mmengine', 'mmcv'):
            raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, Blocked())
import moe_det
for package in ('moe_det.routing', 'moe_det.analysis'):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + '.'):
        importlib.import_module(module.name)
"""


def test_routing_and_analysis_need_no_mmdet():
    done = subprocess.run([sys.executable, '-c', WITHOUT_MMDET], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    'first',
    [
        'import moe_det, mmcv.ops',
        'import moe_det\nfrom mmdet.registry import MODELS',
        'import moe_det.hooks.moe_hook',
        'import moe_det.layers',
        'import moe_det.dataset_check',
        'import moe_det.attacks.objectives',
    ],
)
def test_classes_are_registered_once_mmdet_is_there(first):
    probe = f"{first}\nfrom mmdet.registry import MODELS\nassert MODELS.get('MoERetinaHead') is not None"
    done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, '-m', 'moe_det', 'configs', 'list']
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, '')


def test_a_missing_config_names_its_neighbours_or_the_command_that_lists_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('setup.py').touch()  # whatever lies there is no config
    with pytest.raises(MoEConfigError, match=r"zzzzzz\.py does not exist .* configs list' shows") as error:
        find_config('zzzzzz.py')
    assert 'setup.py' not in str(error.value)
    Path('mine').mkdir()
    Path('mine/detector.py').touch()
    with pytest.raises(MoEConfigError, match=r' mine holds: detector\.py\.'):
        find_config('mine/zzzzzz.py')
    with pytest.raises(MoEConfigError, match=r"Did you mean 'detector\.py'\?"):
        find_config('mine/detectr.py')
