"""Changes to configs: another data folder, --cfg-options, mixed precision, config errors."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from moe_det.common import config_edit, config_file
from moe_det.errors import MoEConfigError
from moe_det.running import amp, launch


def dataset(**settings) -> dict:
    return dict(type='CocoDataset', **settings)


def moved(folder: str = 'new', /, **entries) -> Config:
    cfg = Config(entries)
    config_edit.set_data_root(cfg, folder)
    return cfg


def test_data_root_of_mmdets_own_coco_config():
    cfg = launch.load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', data_root='/somewhere/coco')
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'val')):
        assert loader.dataset.data_root == '/somewhere/coco'
        assert loader.dataset.ann_file == f'annotations/instances_{split}2017.json'
        assert loader.dataset.data_prefix.img == f'{split}2017/'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == '/somewhere/coco/annotations/instances_val2017.json'
    assert cfg.data_root == '/somewhere/coco'
    assert 'data/coco' not in cfg.pretty_text
    assert cfg.work_dir == './work_dirs/retinanet_r50_fpn_1x_coco'


def test_data_root_reaches_wrapped_and_concatenated_datasets():
    first = dataset(data_root='data/coco/', ann_file='a.json', data_prefix=dict(img='a/'))
    second = dataset(data_root='./data/coco', ann_file='data/coco/b.json', data_prefix=dict(img='data/coco/b/'))
    inner = dict(type='ConcatDataset', datasets=[first, second])
    cfg = moved(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=inner)))
    one, two = cfg.train_dataloader.dataset.dataset.datasets
    assert (one.data_root, one.ann_file, one.data_prefix.img) == ('new', 'a.json', 'a/')
    assert (two.data_root, two.ann_file, two.data_prefix.img) == ('new', 'b.json', 'b/')


def test_data_root_of_datasets_that_write_paths_out(tmp_path):
    old = str(tmp_path / 'old')
    shared = dataset(ann_file='data/x/ann/t.json', data_prefix=dict(img='data/x/t/'))
    cfg = moved(data_root='data/x/', val_dataloader=dict(dataset=shared))
    expected = dataset(data_root='new', ann_file='ann/t.json', data_prefix=dict(img='t/'))
    assert cfg.val_dataloader.dataset.to_dict() == expected
    # no folder is declared at all: it is the one that holds annotations and images
    absolute = dataset(ann_file=f'{old}/ann/t.json', data_prefix=dict(img=f'{old}/images/t'))
    cfg = moved(
        test_dataloader=dict(dataset=absolute),
        test_evaluator=[dict(type='CocoMetric', ann_file=f'{old}/ann/t.json'), dict(type='Other', ann_file=None)],
    )
    assert cfg.test_dataloader.dataset.data_root == 'new'
    assert cfg.test_dataloader.dataset.ann_file == 'ann/t.json'
    assert cfg.test_dataloader.dataset.data_prefix.img == 'images/t'
    assert cfg.test_evaluator[0].ann_file == 'new/ann/t.json'
    assert cfg.test_evaluator[1].ann_file is None


def test_data_root_below_the_old_one_is_applied_once():
    # mmdet configs end with test_dataloader = val_dataloader: one object under two names
    loader = dict(dataset=dataset(data_root='data', ann_file='v.json', data_prefix=dict(img='v')))
    evaluator = dict(type='CocoMetric', ann_file=['data/v.json', 'data/w.json'])
    cfg = moved('data/sub', val_dataloader=loader, val_evaluator=evaluator)
    cfg2 = Config(dict(val_dataloader=loader, val_evaluator=evaluator))
    cfg2.test_dataloader, cfg2.test_evaluator = cfg2.val_dataloader, cfg2.val_evaluator
    config_edit.set_data_root(cfg2, 'data/sub')
    for item in (cfg.val_evaluator, cfg2.val_evaluator, cfg2.test_evaluator):
        assert list(item.ann_file) == ['data/sub/v.json', 'data/sub/w.json']
    assert cfg2.test_dataloader.dataset.data_root == 'data/sub'


def test_metric_that_names_another_folder_follows_its_dataset():
    cfg = moved(
        val_dataloader=dict(dataset=dataset(data_root='/disk/coco', ann_file='ann/v.json')),
        val_evaluator=dict(type='CocoMetric', ann_file='data/coco/ann/v.json'),
    )
    assert cfg.val_evaluator.ann_file == 'new/ann/v.json'


def test_several_folders_keep_their_places_relative_to_each_other():
    cfg = moved(
        train_dataloader=dict(dataset=dataset(data_root='data/coco/', ann_file='t.json')),
        val_dataloader=dict(dataset=dataset(data_root='data/shapes/', ann_file='v.json')),
        val_evaluator=dict(type='CocoMetric', ann_file='data/shapes/v.json'),
    )
    assert cfg.train_dataloader.dataset.data_root == 'new/coco'
    assert cfg.val_dataloader.dataset.data_root == 'new/shapes'
    assert cfg.val_evaluator.ann_file == 'new/shapes/v.json'


def test_data_root_refuses_what_it_cannot_map():
    with pytest.raises(MoEConfigError, match='nothing in common.*/a/x.*/b/y'):
        moved(
            train_dataloader=dict(dataset=dataset(data_root='/a/x', ann_file='t.json')),
            val_dataloader=dict(dataset=dataset(data_root='/b/y', ann_file='v.json')),
        )
    with pytest.raises(MoEConfigError, match='no dataset'):
        moved(model=dict(type='RetinaNet'))


def test_a_path_outside_the_old_folder_stays_and_is_named(capsys):
    leaf = dataset(data_root='data/coco', ann_file='/elsewhere/t.json', data_prefix=dict(img='train'))
    cfg = moved(train_dataloader=dict(dataset=leaf))
    assert cfg.train_dataloader.dataset.ann_file == '/elsewhere/t.json'
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train'
    assert '/elsewhere/t.json' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('path', 'root', 'rest'),
    [
        ('data/coco/a.json', 'data/coco/', 'a.json'),
        ('./data/coco/a/', 'data/coco', 'a/'),
        ('data/coco', 'data/coco/', ''),
        ('data/coco2/a.json', 'data/coco', None),
        ('a.json', 'data/coco', None),
        ('s3://bucket/coco/a.json', 's3://bucket/coco/', 'a.json'),
        ('/x/a.json', '/', 'x/a.json'),
    ],
)
def test_path_below(path, root, rest):
    assert config_edit.path_below(path, root) == rest


def test_seed_and_work_dir(tmp_path):
    path = tmp_path / 'name.py'
    path.write_text('randomness = dict(deterministic=True)\n')
    cfg = launch.load_config(path, seed=7)
    assert cfg.randomness == dict(deterministic=True, seed=7)
    assert cfg.default_scope == 'mmdet'
    assert cfg.work_dir == './work_dirs/name'
    assert launch.load_config(path, work_dir='here').work_dir == 'here'
    assert launch.load_config(path, {'work_dir': 'there'}).work_dir == 'there'


def test_options_are_read_as_mmengine_reads_them():
    read = config_file.parse_options(['a.b=1', 'c="[(1,2),(x,None)]"', 'd=1,2', 'e=true', 'f=a=b', 'g=1e-3'])
    assert read == {'a.b': 1, 'c': [(1, 2), ('x', None)], 'd': [1, 2], 'e': True, 'f': 'a=b', 'g': 1e-3}
    assert config_file.parse_options(None) == {}


@pytest.mark.parametrize('option', ['lr', '=3', 'a..b=1', 'a=[1,(2]', 'a=[dict(b=1,c=2)]'])
def test_options_that_cannot_be_read_are_quoted(option):
    with pytest.raises(MoEConfigError, match='--cfg-options') as caught:
        config_file.parse_options(['fine=1', option])
    assert option in str(caught.value)


OPTION_CONFIG = dict(
    data_root='data/coco/',
    model=dict(type='RetinaNet', backbone=dict(type='ResNet', depth=50)),
    train_dataloader=dict(batch_size=2, dataset=dict(pipeline=[dict(type='A'), dict(type='B')])),
)


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('model.bakbone.depth=18', ("'bakbone'", "'backbone'")),
        ('modl.backbone.depth=18', ("'model'",)),
        ('data_root=elsewhere', ('variable', '--data-root')),
        ('train_dataloader.dataset.pipeline.first.type=C', ('list', "'first'")),
    ],
)
def test_an_option_without_effect_is_applied_with_a_warning(capsys, option, words):
    cfg = Config(OPTION_CONFIG)
    try:
        config_file.merge_options(cfg, [option])
    except MoEConfigError:
        assert '.first.' in option  # a list cannot take it
    else:
        key, _, value = option.partition('=')
        node = cfg
        for part in key.split('.'):
            node = node[part]
        assert str(node) == value
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert all(word in err for word in words), err


def test_useful_options_are_applied_in_silence(capsys):
    cfg = Config(OPTION_CONFIG)
    options = ['model.backbone.depth=18', 'model.backbone.norm_eval=True', 'randomness.seed=1', 'load_from=x.pth']
    config_file.merge_options(cfg, [*options, 'train_dataloader.dataset.pipeline.1.type=C', 'custom_hooks=[]'])
    assert capsys.readouterr().err == ''
    assert (cfg.model.backbone.depth, cfg.model.backbone.norm_eval) == (18, True)
    assert [item.type for item in cfg.train_dataloader.dataset.pipeline] == ['A', 'C']


def test_an_option_that_does_not_fit_is_an_error():
    with pytest.raises(MoEConfigError, match='exceeds the length'):
        config_file.merge_options(Config(OPTION_CONFIG), ['train_dataloader.dataset.pipeline.5.type=C'])
    with pytest.raises(MoEConfigError, match='batch_size'):
        config_file.merge_options(Config(OPTION_CONFIG), ['train_dataloader.batch_size.x=1'])


def test_a_mistyped_config_is_answered_with_near_names(tmp_path, monkeypatch):
    folder = tmp_path / 'configs' / 'shapes'
    folder.mkdir(parents=True)
    (folder / 'retinanet_moe_soft.py').write_text('a = 1\n')
    for wrong in ('retinanet_moe_sotf.py', 'retinanet_moe_soft'):
        with pytest.raises(MoEConfigError, match='Did you mean .*retinanet_moe_soft.py'):
            launch.load_config(folder / wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoEConfigError, match="There is no 'shape' in .*Did you mean 'shapes'"):
        launch.load_config('configs/shape/retinanet_moe_soft.py')
    monkeypatch.chdir(folder)
    for wrong in ('configs/shapes/retinanet_moe_hrad.py', 'shapes/retinanet_moe_hrad'):  # the package's configs
        with pytest.raises(MoEConfigError, match="Did you mean 'shapes/retinanet_moe_hard'"):
            launch.load_config(wrong)
    with pytest.raises(MoEConfigError, match='is a folder.*retinanet_moe_soft.py'):
        launch.load_config(folder)
    (folder / 'notes.txt').write_text('')
    with pytest.raises(MoEConfigError, match='.yaml'):
        launch.load_config(folder / 'notes.txt')


@pytest.mark.parametrize(
    ('files', 'words'),
    [
        ({'top.py': 'a = 1\nb = (2,\n'}, ('top.py, line 2', 'never closed')),
        ({'top.py': "_base_ = './low.py'\n", 'low.py': 'x = 1\ny = = 2\n'}, ('low.py, line 2', 'y = = 2')),
        ({'top.py': 'a = 1\nb = undefined_name\n'}, ('top.py, line 2', 'undefined_name')),
        ({'top.py': "_base_ = './absent.py'\n"}, ('top.py', 'absent.py')),
        (
            {'top.py': "_base_ = ['./low.py', './low2.py']\n", 'low.py': 'x = 1\n', 'low2.py': 'x = 2\n'},
            ('top.py', "'x'"),
        ),
        ({'top.py': "_base_ = './low.py'\nx = dict(y=1)\n", 'low.py': 'x = 3\n'}, ('top.py', 'x=')),
        ({'top.py': "custom_imports = dict(imports=['no_such_module_xyz'])\n"}, ('top.py', 'no_such_module_xyz')),
    ],
)
def test_a_config_that_cannot_be_executed_names_file_and_line(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(MoEConfigError) as caught:
        launch.load_config(tmp_path / 'top.py')
    assert all(word in str(caught.value) for word in words), caught.value


def test_auto_scale_lr_needs_a_base_batch_size():
    with pytest.raises(MoEConfigError, match='base_batch_size'):
        config_edit.enable_auto_scale_lr(Config(dict()))
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
    config_edit.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable is True


def test_amp_follows_the_device(monkeypatch):
    def enabled(device: str, **settings) -> dict:
        monkeypatch.setattr(amp, 'get_device', lambda: device)
        cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD'), **settings)))
        amp.enable_amp(cfg)
        return {key: value for key, value in cfg.optim_wrapper.items() if key != 'optimizer'}

    assert enabled('cuda', type='OptimWrapper') == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    own = dict(type='AmpOptimWrapper', loss_scale=512.0)
    assert enabled('cuda', **own) == own
    assert enabled('cpu', **own) == dict(type='CPUAmpOptimWrapper')
    with pytest.raises(MoEConfigError, match='DeepSpeed'):
        enabled('cpu', type='DeepSpeedOptimWrapper')


def test_cpu_amp_computes_in_bfloat16_and_learns():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3))
    wrapper = amp.CPUAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.05))
    image, target = torch.randn(4, 3, 8, 8), torch.randn(4, 1, 4, 4)
    losses = []
    for _ in range(40):
        with wrapper.optim_context(model):
            output = model(image)
            loss = (output.float() - target).square().mean()
        assert output.dtype == torch.bfloat16
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert set(wrapper.state_dict()) >= {'state', 'param_groups'}
