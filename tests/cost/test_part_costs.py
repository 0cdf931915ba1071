"""Costs of configs: against mmdet's known numbers, against counting what really runs, and by hand."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from mmengine.config import Config
from small_models import REPOSITORY, RETINANET, batch, build, config, mmdet_scope, shrink

from moe_det.common.dense_counterpart import dense_counterpart
from moe_det.cost.model_cost import count_macs
from moe_det.cost.part_costs import WHOLE, ModelCost, model_cost

FOUR = dict(num_experts=4, top_k=2)
SHARDS = dict(placement='shards', shards=2, copies=4)
SIZE = (64, 96)
LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def small(moe: dict | None = None, base: str = RETINANET, **changes) -> dict:
    """The model's config of tests/small_models.py, changed."""
    cfg = config(f"_base_ = '{base}'")
    cfg.model.backbone.depth = 18 if base == RETINANET else 50
    shrink(cfg)
    if base == RETINANET:
        cfg.model.bbox_head.stacked_convs = 1
    if moe is not None:
        cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe)
    for part, values in changes.items():
        cfg.model[part].update(values)
    return cfg.model


def cost_of(model: dict, size: tuple[int, int] = SIZE) -> ModelCost:
    with mmdet_scope():
        return model_cost(model, size)


@functools.cache
def mmdets_retinanet() -> ModelCost:
    return cost_of(config(f"_base_ = '{RETINANET}'").model, (800, 1280))


def test_numbers_of_mmdets_retinanet():
    cost = mmdets_retinanet()
    assert cost.experts == 'dense' and cost.size == (800, 1280)
    assert list(cost.parts) == ['backbone', 'neck', 'bbox_head', WHOLE]
    whole = cost.parts[WHOLE]
    assert whole.params == whole.active_params == 37968692  # the sum that mmdet's documentation rounds to 37.97 M
    pixels = sum(h * w for h, w in [(100, 160), (50, 80), (25, 40), (13, 20), (7, 10)])
    head = pixels * 9 * 256 * (2 * 4 * 256 + 9 * 80 + 9 * 4)
    assert cost.parts['bbox_head'].macs == cost.parts['bbox_head'].active_macs == head
    # mmdet's counter says 239.3e9: it adds norms
    assert whole.macs == whole.active_macs == pytest.approx(238.5e9, rel=1e-3)
    assert whole.macs == sum(part.macs for name, part in cost.parts.items() if name != WHOLE)


def test_matched_config_costs_the_dense_model():
    file = REPOSITORY / 'configs' / 'retinanet_moe_soft_matched.py'
    matched, soft = Config.fromfile(file), Config.fromfile(file.with_name('retinanet_moe_soft.py'))
    assert (matched.model.bbox_head.moe.pop('width'), soft.model.bbox_head.moe.pop('width')) == (0.625, 1)
    assert matched.model.to_dict() == soft.model.to_dict()  # nothing else differs
    ours = cost_of(Config.fromfile(file).model, (800, 1280))
    plain = mmdets_retinanet()
    assert ours.parts['bbox_head'].active_macs / plain.parts['bbox_head'].macs == pytest.approx(0.993, abs=1e-3)
    assert ours.parts[WHOLE].active_macs / plain.parts[WHOLE].macs == pytest.approx(1, abs=0.01)
    assert ours.parts[WHOLE].active_params / plain.parts[WHOLE].params == pytest.approx(1, abs=0.01)


def really_run(model: dict, size: tuple[int, int] = SIZE) -> int:
    """Multiply-adds of a forward with random weights, as the model is."""
    torch.manual_seed(0)
    return count_macs(build(copy.deepcopy(model)).eval(), batch([size]))[0]


@pytest.mark.parametrize(
    'moe',
    [
        dict(FOUR, top_k=1),
        FOUR,
        dict(FOUR, top_k=3, shared_gate=True),
        dict(FOUR, unit='patch', grid=2),
        dict(FOUR, unit='image'),
        dict(FOUR, shared_expert=True, branches='cls'),
        dict(FOUR, placement='tower'),
        dict(FOUR, placement='tower', shared_expert=2, weighting='full_softmax'),
        dict(FOUR, top_k=4, placement='last', unit='patch', grid=2, rows_per_expert=1, shared_expert=True),
        dict(FOUR, dispatch='all'),
        dict(FOUR, gate=dict(type='AttentiveGate')),
        dict(num_experts=3, top_k=3, soft_mixture=True),
        dict(num_experts=1, top_k=1),
        SHARDS,
        dict(SHARDS, unit='image', shared_gate=True, copies_share=True),
        dict(SHARDS, branches='reg', copies=2),
        dict(SHARDS, copies=1),
        dict(FOUR, top_k=1, weighting='straight_through', copies_share=True),
        dict(FOUR, gate=dict(type='ConvGAPGate'), constraint=dict(type='RelativeImportanceConstraint')),
    ],
    ids=lambda moe: '-'.join(map(str, moe.values()))[:60],
)
def test_active_and_all_are_what_runs_sorted_and_dense(moe):
    cost = cost_of(small(moe)).parts[WHOLE]
    assert cost.active_macs == really_run(small(moe))
    assert cost.macs == really_run(small(dict(moe, dispatch='all')))
    runs_all = moe.get('dispatch') == 'all' or moe.get('gate') == dict(type='AttentiveGate') or 'soft_mixture' in moe
    assert (cost.active_macs == cost.macs) == (runs_all or moe.get('num_experts') == 1 or moe.get('copies') == 1)


def test_idle_experts_by_hand():
    three = cost_of(small(dict(num_experts=3, top_k=1, branches='cls', width=0.5)))
    # the class branch: 16 -> 8 channels, then 9 anchors of 3 classes, two of three experts idle; no product mixes them
    expert = sum(h * w for h, w in LEVELS) * 9 * (16 * 8 + 8 * 27)
    whole = three.parts[WHOLE]
    assert whole.macs - whole.active_macs == 2 * expert
    assert three.parts['bbox_head'].macs - three.parts['bbox_head'].active_macs == 2 * expert
    assert three.parts['backbone'].macs == three.parts['backbone'].active_macs
    assert whole.params - whole.active_params == 2 * (9 * 16 * 8 + 8 + 9 * 8 * 27 + 27)


@pytest.mark.parametrize('share', [False, True])
def test_shards_cost_the_dense_branch(share):
    shards = cost_of(small(dict(SHARDS, copies_share=share), bbox_head=dict(norm_cfg=dict(type='GN', num_groups=4))))
    plain = cost_of(small(bbox_head=dict(norm_cfg=dict(type='GN', num_groups=4)))).parts[WHOLE]
    assert shards.experts == 'unconstrained, 2 shards of 4 copies per level'
    whole, pixels = shards.parts[WHOLE], sum(h * w for h, w in LEVELS)
    gates = 2 * 5 * 16 * 8  # two branches, five levels: 16 channels -> 8 logits
    assert whole.active_macs == plain.macs + gates
    # one convolution of 16 channels, its norm and a predictor, of which each shard holds a half, besides the bias
    others = 3 * (9 * 16 * 16 + 2 * 16)
    biases = 7  # eight experts have one each, the dense branch one
    predictors = [3 * 9 * 16 * outputs + biases * outputs for outputs in (27, 36)]
    gate_params = 2 * (16 * 8 + 8)
    assert whole.params - plain.params == 2 * others + sum(predictors) + gate_params
    # of the biases a row uses two
    assert whole.active_params - plain.params == 27 + 36 + gate_params
    # where all copies run, the outputs of eight are weighted and summed
    mixing = pixels * 8 * (27 + 36)
    assert whole.macs - plain.macs == 3 * 9 * pixels * 16 * (2 * 16 + 27 + 36) + mixing + gates


def test_experts_in_backbone_and_convolutions():
    stages = small(backbone=dict(type='MoEResNet', moe=dict(stages=(3, 4), num_experts=3, top_k=2)))
    cost = cost_of(stages)
    assert cost.parts[WHOLE].active_macs == really_run(stages) < cost.parts[WHOLE].macs
    assert cost.parts['backbone'].macs - cost.parts['backbone'].active_macs == (
        cost.parts[WHOLE].macs - cost.parts[WHOLE].active_macs
    )
    convs = small(bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_experts=4, top_k=2)))
    assert cost_of(convs).parts[WHOLE].active_macs == really_run(convs)


def test_two_stage_detectors_are_counted_by_running_them():
    model = small(
        base='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        backbone=dict(type='MoEResNet', moe=dict(stages=(4,), num_experts=3, top_k=1)),
    )
    cost = cost_of(model)
    plain, changes = dense_counterpart(model)
    assert changes == ['backbone: ResNet in place of MoEResNet']
    dense = cost_of(plain)
    assert set(cost.parts) == {'backbone', 'neck', 'rpn_head', 'roi_head', WHOLE}
    assert cost.parts['roi_head'].macs > 0
    # the gate is all that one active full-size expert costs beside the stage that it replaces
    gate = 3 * 128  # logits from the pooled channels of stage 3
    assert cost.parts['backbone'].active_macs - dense.parts['backbone'].macs == gate


def names(model: dict) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in build(copy.deepcopy(model)).state_dict().items()}


@pytest.mark.parametrize('conv_cfg', [None, dict(type='MoEConv2d', num_experts=2, top_k=1)])
def test_dense_counterpart_is_the_plain_model(conv_cfg):
    moe = small(FOUR, backbone=dict(type='MoEResNet', moe=dict(stages=(2,), num_experts=2, top_k=1)))
    if conv_cfg is not None:
        moe = small(bbox_head=dict(conv_cfg=conv_cfg))
    before = copy.deepcopy(moe)
    plain, changes = dense_counterpart(moe)
    assert moe == before and len(changes) == (2 if conv_cfg is None else 1)
    assert names(plain) == names(small())


def test_dense_counterpart_takes_blocks_out_and_leaves_others():
    block = dict(cfg=dict(type='MoEBlock', num_experts=2, top_k=1), stages=(False, True), position='after_conv3')
    other = dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=(False, True), position='after_conv2')
    model = dict(type='RetinaNet', backbone=dict(type='ResNet', plugins=[block, other]), neck=dict(type='FrozenFPN'))
    plain, changes = dense_counterpart(model)
    assert plain['backbone'] == dict(type='ResNet', plugins=[other]) and plain['neck'] == dict(type='FPN')
    assert changes == ['backbone: no MoEBlock']
    assert dense_counterpart(dict(type='ResNet', plugins=[block]))[0]['plugins'] is None
    assert dense_counterpart(small())[1] == []


def test_classifiers_have_a_counterpart_too():
    resnet = dict(
        type='ResNetClassifier',
        num_classes=5,
        data_preprocessor=dict(type='ClassificationPreprocessor', mean=(0.5,) * 3, std=(0.5,) * 3),
        backbone=dict(
            type='MoEResNet', depth=18, base_channels=8, small_images=True, init_cfg=[], norm_eval=False,
            moe=dict(stages=(4,), num_experts=4, top_k=2),
        ),
    )  # fmt: skip
    cost = cost_of(resnet, (32, 32))
    plain, _ = dense_counterpart(resnet)
    assert plain['backbone']['type'] == 'SmallImageResNet' and 'small_images' not in plain['backbone']
    dense = cost_of(plain, (32, 32))
    assert dense.experts == 'dense'
    # the paper's narrow experts: two cost about one stage
    assert cost.parts[WHOLE].active_macs / dense.parts[WHOLE].macs == pytest.approx(1, abs=0.05)
    assert cost.parts[WHOLE].macs > cost.parts[WHOLE].active_macs


def test_experts_that_compute_side_by_side_are_counted_when_chosen():
    def mixture(test_top_k=None, **moe) -> dict:
        return dict(
            type='MixtureClassifier',
            num_classes=4,
            test_top_k=test_top_k,
            data_preprocessor=dict(type='ClassificationPreprocessor'),
            expert=dict(in_channels=1, image_size=12, channels=(2,), hidden=(6,)),
            moe=dict(noise=False, gate=dict(type='GAPLinearGate'), **moe),
        )

    all_three = cost_of(mixture(num_experts=3, top_k=3, soft_mixture=True), (12, 12)).parts[WHOLE]
    assert all_three.macs == all_three.active_macs
    one = cost_of(mixture(num_experts=3, top_k=1), (12, 12)).parts[WHOLE]
    plain, changes = dense_counterpart(mixture(num_experts=3, top_k=1))
    assert changes == ['model: one expert without a gate']
    single = cost_of(plain, (12, 12)).parts[WHOLE]
    assert one.active_macs == single.macs + 3  # the gate: one channel, three logits
    assert one.macs == 3 * single.macs + 3
    in_evaluation = cost_of(mixture(num_experts=3, top_k=3, soft_mixture=True, test_top_k=1), (12, 12))
    assert in_evaluation.parts[WHOLE].active_macs == one.active_macs and '1 of 3' in in_evaluation.experts
    assert in_evaluation.parts[WHOLE].active_params == one.active_params < one.params
