# A RetinaNet with experts for a few hundred photographs of your own: copy this file and retinanet_r18_dense.py into
# one folder, change the five lines, train the dense detector and then this one. docs/your_own_data.md explains each
# line; benchmarks/real_images.py measures both.
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# --- the five lines
data_root = 'data/photographs/'  # holds annotations/instances_{train,val}2017.json, train2017/ and val2017/
classes = ('cat', 'dog')  # names of the categories as in these files; a single one is ('cat',)
size = 640  # pixels of an image's longer side for the network
channels = 64  # of pyramid and head; 64 suit a CPU and a few hundred images, RetinaNet has 256
epochs = 6  # with experts; the dense detector takes three times as many

# the dense detector, trained before; or another checkpoint of a detector without experts
load_from = f'work_dirs/retinanet_r18_dense/epoch_{3 * epochs}.pth'

custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]

model = dict(
    # ImageNet's weights; load_from replaces them where it has others
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(out_channels=channels, norm_cfg=dict(type='BN', requires_grad=True)),
    bbox_head=dict(
        type='MoERetinaHead',
        num_classes=len(classes),
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=4),
        # anchors of 16 to 406 px at the network's input, half of RetinaNet's
        anchor_generator=dict(octave_base_scale=2),
        loss_bbox=dict(loss_weight=2.0),
        # RetinaNet's 0.01 suits four convolutions of 256 channels; here it would keep gradients from the backbone
        init_cfg=dict(
            type='Normal',
            layer='Conv2d',
            std=0.05,
            override=[
                dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01),
                dict(type='Normal', name='retina_reg', std=0.01),
            ],
        ),
        moe=dict(
            placement='shards',  # two shards of four copies: the cost and, at the start, the outputs of the dense head
            unit='image',
            constraint=dict(type='KLConstraint', weight=0.01),
            noise=False,
        ),
    ),
    # of a small object hardly any anchor overlaps by more than RetinaNet's half
    train_cfg=dict(assigner=dict(pos_iou_thr=0.4, neg_iou_thr=0.3)),
)

# --- data
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(size, size), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    # images without objects take part
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
        filter_cfg=dict(filter_empty_gt=False),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

# --- schedule
train_cfg = dict(max_epochs=epochs, val_interval=max(1, epochs // 3))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.3)}),  # it knows more than the head
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True, eta_min=1e-5),
]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=2))
