"""The demo's stages: what it writes, what it keeps, what it says when the data cannot be made."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from mmengine.config import Config

from moe_det.errors import DataError
from moe_det.hooks.moe_hook import MoEHook
from moe_det.routing import Utilisation
from moe_det.studies import demo

CONFIG = str(Path(__file__).resolve().parents[2] / 'configs' / 'shapes' / 'retinanet_moe_soft.py')
UTILISATION = Utilisation((0.25,) * 4, (1.0,) * 4, 4, 1.5, 2.0, 100)


class _Runner:
    """Stands for mmengine's: training leaves a checkpoint, testing returns metrics and fills the hook."""

    calls: list[str] = []

    def __init__(self, cfg) -> None:
        self.cfg = cfg
        self.hooks = [MoEHook()]

    @property
    def name(self) -> str:
        kind = self.cfg.model.bbox_head.type
        assert any(hook.type == 'MoEHook' for hook in self.cfg.custom_hooks) == (kind == 'MoERetinaHead')
        return {'RetinaHead': 'dense', 'MoERetinaHead': 'experts'}[kind]

    def train(self) -> None:
        self.calls.append(f'train {self.name} from {self.cfg.load_from}')
        folder = Path(self.cfg.work_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'epoch_1.pth').write_bytes(b'weights')
        (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))

    def test(self) -> dict:
        self.calls.append(f'test {self.name} {Path(self.cfg.load_from).name}')
        self.hooks[0].utilisation = {'bbox_head.cls': UTILISATION}
        return {f'coco/{name}': 0.25 if self.name == 'experts' else 0.5 for name in demo.METRICS}


@pytest.fixture
def run(tmp_path, monkeypatch):
    def build(cfg):
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        return _Runner(cfg)

    def analyse(config, checkpoints, options):
        _Runner.calls.append('analyse ' + Path(checkpoints[0]).name)
        folder = Path(options.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ('report.html', 'size_specialization.json'):
            (folder / name).write_text('')

    monkeypatch.setattr(demo, 'build_runner', build)
    monkeypatch.setattr(demo, 'analyse', analyse)
    monkeypatch.setattr(_Runner, 'calls', [])

    def call(train=2):
        return demo.run_demo(CONFIG, str(tmp_path / 'work'), str(tmp_path / f'data{train}'), train, 1)

    return call


def test_summary_holds_metrics_time_config_checkpoint_and_utilisation(run, tmp_path, capsys):
    summary = run()
    stored = json.loads((tmp_path / 'work' / 'summary.json').read_text())
    assert stored.keys() == summary.keys()
    assert [stored[name] for name in ('bbox_mAP', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')] == [0.25] * 4
    assert stored['train_seconds'] >= 0 and stored['config'] == CONFIG
    assert Path(stored['checkpoint']).name == 'epoch_1.pth'
    assert stored['utilisation']['bbox_head.cls']['living'] == 4
    assert stored['dense']['bbox_mAP'] == 0.5
    assert 0.98 <= stored['multiply_adds_over_dense'] <= 1.02
    printed = capsys.readouterr().out
    assert '0.250' in printed and '0.500' in printed and 'bbox_head.cls' in printed and 'moe-det test' in printed
    assert str(tmp_path / 'work/size_specialization/report.html') in printed


ALL = [
    'train experts from None',
    'train dense from None',
    'test experts epoch_1.pth',
    'test dense epoch_1.pth',
    'analyse epoch_1.pth',
]


def test_second_run_trains_and_tests_nothing(run):
    run()
    assert _Runner.calls == ALL
    run()
    assert len(_Runner.calls) == len(ALL)


def test_lost_report_is_made_again(run, tmp_path):
    run()
    (tmp_path / 'work/size_specialization/report.html').unlink()
    run()
    assert _Runner.calls[len(ALL) :] == ['analyse epoch_1.pth']


def test_lost_summary_is_made_from_the_kept_checkpoint(run, tmp_path):
    run()
    (tmp_path / 'work' / 'summary.json').unlink()
    run()
    assert _Runner.calls[len(ALL) :] == ['test experts epoch_1.pth']


def test_other_settings_are_trained_anew(run):
    run()
    run(train=3)
    assert _Runner.calls[len(ALL) :] == ALL


def test_interrupted_training_is_continued(run, tmp_path):
    run()
    (tmp_path / 'work' / 'trained.json').unlink()
    (tmp_path / 'work' / 'summary.json').unlink()
    run()
    resumed = _Runner.calls[len(ALL)]
    assert resumed.startswith('train experts from') and resumed.endswith('epoch_1.pth')


def test_data_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'thesis.txt').write_text('not to be lost')
    with pytest.raises(DataError, match='data'):
        demo.run_demo(CONFIG, str(tmp_path / 'work'), str(tmp_path / 'data'), 2, 1)
    assert (tmp_path / 'data' / 'thesis.txt').is_file()


def test_a_number_of_epochs_ends_the_schedule_too():
    cfg = Config.fromfile(CONFIG)
    warm_up, decay = deepcopy(cfg.param_scheduler)
    demo._train_for(cfg, 2)
    assert cfg.train_cfg.max_epochs == 2
    assert cfg.param_scheduler == [warm_up, {**decay, 'end': 2}]
