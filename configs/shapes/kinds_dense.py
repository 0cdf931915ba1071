# A RetinaNet whose head is too narrow for its classes, for shapes of four kinds of scenes (24 classes):
#   python tools/misc/make_shapes.py data/kinds --train 1600 --val 400 --size 128 --scene-kinds 4
# benchmarks/experts_that_pay.py starts its mixtures from it.
_base_ = './retinanet_dense.py'

data_root = 'data/kinds/'
metainfo = dict(
    classes=tuple(
        f'{name}_{kind}' for kind in range(4) for name in ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
    )
)
model = dict(bbox_head=dict(num_classes=24, feat_channels=8))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
