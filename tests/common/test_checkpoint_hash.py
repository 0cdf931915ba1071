"""What tells one checkpoint from another: the bytes of a file, and the weights in it."""

from __future__ import annotations

import hashlib

import pytest
import torch

from moe_det.common.checkpoints import file_sha256, weights_sha256
from moe_det.errors import CheckpointError, DataError
from moe_det.studies.size_specialization import refuse_equal_weights


def test_a_file_is_told_by_its_bytes(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'x' * (3 << 20) + b'end')
    assert file_sha256(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_urls_are_two_checkpoints():
    """Findings that were kept for one URL must not be taken for another's."""
    assert file_sha256('https://host/a.pth') != file_sha256('https://host/b.pth')


WEIGHTS = {
    'conv.weight': torch.arange(12.0).reshape(3, 4),
    'conv.bias': torch.tensor([1.0, 2.0]).to(torch.bfloat16),
    'norm.num_batches_tracked': torch.tensor(7),
    'empty': torch.zeros(0, 3),
}


@pytest.fixture
def saved(tmp_path):
    def save(name: str, weights: dict, **more) -> str:
        path = tmp_path / name
        torch.save(dict(state_dict=weights, **more), path)
        return str(path)

    return save


def test_the_same_weights_are_known_however_they_were_saved(saved, tmp_path):
    path = saved('a.pth', WEIGHTS, meta=dict(seed=0, epoch=4), optimizer=dict(lr=1.0))
    copies = [
        saved('renamed.pth', WEIGHTS, meta=dict(seed=1)),
        saved('reversed.pth', dict(reversed(WEIGHTS.items()))),
        saved('wrapped.pth', {f'module.{name}': value for name, value in WEIGHTS.items()}),
        saved('strided.pth', WEIGHTS | {'conv.weight': WEIGHTS['conv.weight'].T.contiguous().T}),
        str(tmp_path / 'bare.pth'),
    ]
    torch.save(WEIGHTS, copies[-1])
    assert len({file_sha256(copy) for copy in [path, *copies]}) == 6
    assert {weights_sha256(copy) for copy in copies} == {weights_sha256(path)}
    for copy in copies:
        with pytest.raises(DataError, match=f'{copy} and {path} are the same weights'):
            refuse_equal_weights([path, copy])


def test_other_weights_are_others(saved):
    weight = WEIGHTS['conv.weight']
    others = [
        WEIGHTS | {'conv.weight': weight + 1e-6},
        WEIGHTS | {'conv.weight': weight.reshape(4, 3)},
        WEIGHTS | {'conv.weight': weight.double()},
        {name: value for name, value in WEIGHTS.items() if name != 'empty'},
        {name.replace('conv', 'cone'): value for name, value in WEIGHTS.items()},
    ]
    paths = [saved(f'{number}.pth', weights, meta=dict(seed=0)) for number, weights in enumerate([WEIGHTS, *others])]
    assert len({weights_sha256(path) for path in paths}) == len(paths)
    refuse_equal_weights(paths)
    with pytest.raises(DataError, match='are the same weights'):
        refuse_equal_weights([*paths, paths[0]])


def test_one_checkpoint_needs_no_comparison_and_unreadable_ones_say_so(saved, tmp_path):
    refuse_equal_weights([])
    refuse_equal_weights(['not/read.pth'])
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'PK')
    with pytest.raises(CheckpointError, match=r'broken\.pth'):
        refuse_equal_weights([saved('a.pth', WEIGHTS), str(broken)])
    with pytest.raises(CheckpointError, match='holds no weights'):
        weights_sha256(saved('nothing.pth', {}))
