"""Questions about single images are no collective computations."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from mmdet.utils import reduce_mean

from moe_det.probing.one_process import one_process
from moe_det.routing.distributed import world


def test_heads_do_not_wait_for_other_processes(monkeypatch):
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'all_reduce', lambda *args, **kwargs: pytest.fail('waited for the others'))
    with one_process():
        assert reduce_mean(torch.tensor(3.0)) == 3 and world() == (0, 1)
    assert dist.is_initialized()
    with pytest.raises(KeyError), one_process():
        raise KeyError
    assert dist.is_initialized()
