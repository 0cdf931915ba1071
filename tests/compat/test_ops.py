"""The stand-in for ``mmcv._ext``: when it steps in, what it answers, and that the order of imports does not matter."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from mmcv.ops import soft_nms

from moe_det.compat.ops import EXTENSION, install_ops, ops_source
from moe_det.errors import StackError

stand_in = pytest.mark.skipif(ops_source() != 'torchvision', reason="mmcv's own compiled operators are in use")


@stand_in
def test_spec_is_found_where_mmengine_and_mmcv_look():
    from mmengine.utils.dl_utils import mmcv_full_available

    assert importlib.util.find_spec(EXTENSION).origin == 'moe_det.compat.ops'
    assert mmcv_full_available()


@stand_in
def test_unknown_operator_exists_and_raises_when_called():
    with pytest.raises(StackError, match="the operator 'softnms' needs mmcv's compiled operators"):
        soft_nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0.5]))
    assert not hasattr(sys.modules[EXTENSION], '__path__')


@stand_in
def test_environment_report_says_what_stands_in():
    from mmcv.ops import get_compiler_version

    assert get_compiler_version().startswith('not compiled (torchvision ')


def test_installing_again_keeps_the_module():
    before = sys.modules[EXTENSION]
    install_ops()
    assert sys.modules[EXTENSION] is before


@stand_in
def test_order_of_imports_does_not_matter(run_python):
    # onedl-mmdetection defines raising stubs here, mmdet 3.3 does not import at all; then moe_det comes
    code = """
import warnings
warnings.simplefilter('ignore')
try:
    import mmdet.models
except ImportError:
    pass
import mmcv.cnn.bricks.transformer as early
import moe_det
import mmcv.ops, mmdet.models
import mmdet.models.dense_heads.base_dense_head as head
import mmdet.models.layers.bbox_nms as bbox_nms
import mmdet.models.losses.focal_loss as focal_loss
assert head.batched_nms is mmcv.ops.batched_nms
assert bbox_nms.batched_nms is mmcv.ops.batched_nms
assert focal_loss._sigmoid_focal_loss == mmcv.ops.sigmoid_focal_loss
assert early.MultiScaleDeformableAttention is mmcv.ops.MultiScaleDeformableAttention
from moe_det.compat import prepare_stack
prepare_stack()
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count('mmcv has no compiled operators') == 1


PLANTED = """
import mmcv
mmcv.__path__.append({folder!r})
import moe_det, sys
print('extension', sys.modules['mmcv._ext'].__file__)
from moe_det.compat.ops import ops_source
print('source', ops_source())
"""


def test_compiled_operators_are_never_replaced(run_python, tmp_path):
    (tmp_path / '_ext.py').write_text('def __getattr__(name):\n    return print\n')
    result = run_python(PLANTED.format(folder=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert f'extension {tmp_path}' in result.stdout and 'source compiled' in result.stdout
    assert 'no compiled operators' not in result.stdout + result.stderr


def test_compiled_operators_that_do_not_load_are_named(run_python, tmp_path):
    (tmp_path / '_ext.py').write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    result = run_python(PLANTED.format(folder=str(tmp_path)))
    assert result.returncode == 1
    assert f"StackError: mmcv's compiled operators ({tmp_path}/_ext.py) do not load with torch" in result.stderr
    assert 'undefined symbol' in result.stderr
