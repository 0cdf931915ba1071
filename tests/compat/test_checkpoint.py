"""A checkpoint of mmengine's Runner resumes with ``weights_only=True``, and nothing else than needed is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from moe_det.compat.checkpoint import allow_mmengine_classes
from moe_det.errors import CheckpointError


class TinyModel(BaseModel):
    """One linear layer, enough for a loss history and an optimizer state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.linear(torch.stack(inputs))
        return dict(loss=output.square().mean()) if mode == 'loss' else output


class TinyData(Dataset):
    """Four points; its meta information is nested, as a config's is."""

    metainfo = dict(classes=('a', 'b'), palette=[(1, 2, 3)], info=ConfigDict(key=1))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.full((2,), float(index)))


def runner(folder: Path, max_iters: int, name: str, **options) -> Runner:
    return Runner(
        model=TinyModel(),
        work_dir=str(folder),
        train_dataloader=dict(batch_size=2, sampler=dict(type='DefaultSampler', shuffle=True), dataset=TinyData()),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', by_epoch=False, milestones=[2, 6], end=100),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
        ),
        custom_hooks=[dict(type='EMAHook')],
        experiment_name=name,
        **options,
    )


def test_runner_resumes_its_own_checkpoint(tmp_path, weights_only_enforced):
    runner(tmp_path, 4, 'first').train()
    second = runner(tmp_path, 8, 'second', load_from=str(tmp_path / 'iter_4.pth'), resume=True)
    second.train()
    assert len(weights_only_enforced) == 1
    assert second.iter == 8
    assert len(second.message_hub.get_scalar('train/loss').data[0]) == 8  # four of them from the checkpoint
    steps = [state['step'].item() for state in second.optim_wrapper.optimizer.state.values()]
    assert steps == [8, 8]
    assert second.optim_wrapper.get_lr()['lr'][0] == pytest.approx(0.001)


def test_loading_twice_works(tmp_path, weights_only_enforced):
    # onedl-mmengine takes its own allow-list away after each load
    from mmengine.runner.checkpoint import load_checkpoint

    runner(tmp_path, 4, 'twice').train()
    for _ in range(2):
        load_checkpoint(TinyModel(), str(tmp_path / 'iter_4.pth'))
    assert torch.load(tmp_path / 'iter_4.pth')['message_hub']['log_scalars']['train/loss'].mean() > 0


@pytest.mark.parametrize('spelling', [b'numpy.core', b'numpy._core'])
def test_numpy_values_of_either_numpy_load(tmp_path, spelling):
    values = [np.float64(0.5), np.int64(3), np.arange(3.0), np.array([True]), np.array(['text'])]
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save([values, history], tmp_path / 'file.pth', _use_new_zipfile_serialization=False)
    content = (tmp_path / 'file.pth').read_bytes()
    content = content.replace(b'numpy._core', b'numpy.core').replace(b'numpy.core', spelling)
    assert spelling in content
    (tmp_path / 'file.pth').write_bytes(content)

    loaded, loaded_history = torch.load(tmp_path / 'file.pth', weights_only=True)
    for got, expected in zip(loaded, values, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    assert loaded_history.mean() == 1.5


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'planted',
    [Call(getattr, np.ndarray, 'tofile'), Call(getattr, HistoryBuffer, '__init__'), Call(eval, '1'), Call(Path, '/')],
    ids=['attribute of another class', 'private attribute', 'eval', 'unlisted class'],
)
def test_a_checkpoint_cannot_reach_code(tmp_path, planted):
    torch.save(dict(state_dict={}, planted=planted), tmp_path / 'bad.pth')
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


def test_allowing_again_adds_nothing():
    allow_mmengine_classes()
    before = set(torch.serialization.get_safe_globals())
    allow_mmengine_classes()
    assert set(torch.serialization.get_safe_globals()) == before


def test_older_torch_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.5.1+cpu')
    monkeypatch.delattr(torch.serialization, 'add_safe_globals')
    allow_mmengine_classes()
