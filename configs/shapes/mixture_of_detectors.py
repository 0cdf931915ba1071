# A gate over two frozen detectors, one trained on far and one on near scenes (after arXiv 2412.11608). First
#   moe-det make-shapes data/scenes --scene-scale 1
#   moe-det make-shapes data/scenes_far --scene-scale 1 --scenes far
#   moe-det make-shapes data/scenes_near --scene-scale 1 --scenes near
#   moe-det train shapes/retinanet_dense --data-root data/scenes_far --work-dir work_dirs/far
#   moe-det train shapes/retinanet_dense --data-root data/scenes_near --work-dir work_dirs/near
# The gate alone is trained, on all scenes. docs/results/mixture_of_detectors.md compares it
# with one detector and with the ensemble.
_base_ = './retinanet_dense.py'

model = dict(
    _delete_=True,
    type='MixtureOfDetectors',
    detectors=[
        dict(config='moe_det::shapes/retinanet_dense.py', checkpoint='work_dirs/far/epoch_4.pth'),
        dict(config='moe_det::shapes/retinanet_dense.py', checkpoint='work_dirs/near/epoch_4.pth'),
    ],
    top_k=None,  # all of them; 1: the gate chooses one. With test_top_k=1 it learns to mix and chooses in evaluation
    classwise=False,  # one gate; True: one for each class and one for the boxes
    gate=dict(type='GAPLinearGate'),  # or MLPGate
    forced=None,  # in evaluation: 0 or 1, one detector alone; [0, 1], the ensemble
)
custom_hooks = [
    dict(type='MoEHook', interval=10),
    dict(type='ExactResumeHook'),
    dict(type='SkipBadImagesHook'),
    dict(type='FiniteHook'),
]

data_root = 'data/scenes/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=2, convert_to_iter_based=True, eta_min=4e-5),
]
