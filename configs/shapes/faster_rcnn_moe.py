# A small Faster R-CNN (R18 of 16 base channels) with experts in the convolution of its region proposals and, one
# decision per region of interest, in its box head, for the shapes of dino_moe.py. docs/detectors.md has its results.
_base_ = './dino_moe.py'

_anchors = dict(type='AnchorGenerator', scales=[1], ratios=[1.0], strides=[8, 16, 32])
_cross_entropy = dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)
_boxes = dict(type='L1Loss', loss_weight=1.0)
_sampler = dict(type='RandomSampler', pos_fraction=0.5, neg_pos_ub=-1)
_nms = dict(type='nms', iou_threshold=0.7)
model = dict(
    _delete_=True,
    type='WithExperts',
    detector='FasterRCNN',
    experts=[
        dict(
            modules='rpn_head.rpn_conv',
            type='MoEConv2d',
            num_levels=3,
            num_experts=4,
            top_k=1,
            constraint=dict(type='KLConstraint', weight=0.05),
        ),
        dict(
            modules='roi_head.bbox_head.shared_fcs.1',
            type='MoELinear',
            num_experts=4,
            top_k=1,
            constraint=dict(type='KLConstraint', weight=0.05),
        ),
    ],
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        style='pytorch',
    ),
    neck=dict(type='FPN', in_channels=[32, 64, 128], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    rpn_head=dict(
        type='RPNHead',
        in_channels=64,
        feat_channels=64,
        anchor_generator=_anchors,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=_cross_entropy,
        loss_bbox=_boxes,
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=64,
            featmap_strides=[8, 16, 32],
            finest_scale=14,
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=64,
            fc_out_channels=128,
            roi_feat_size=7,
            num_classes=6,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=_boxes,
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(num=128, add_gt_as_proposals=False, **_sampler),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=300, max_per_img=100, nms=_nms, min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False
            ),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=50, nms=_nms, min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10))
