# What the runs of the image classifiers share. Published results are those of the last epoch: no checkpoint is chosen.
custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='ClassificationHook'),  # order and augmentations from seed and epoch, also after --resume
)
custom_hooks = [dict(type='MoEHook', interval=50), dict(type='ExactResumeHook'), dict(type='FiniteHook')]
# an expert's rows differ in number from step to step: cuDNN would search again for each number
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='nccl'))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
load_from = None
resume = False
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='ClassificationMetric')
test_evaluator = dict(type='ClassificationMetric')

# a data set's file adds its name and batch sizes
data_root = 'data'
dataset_type = 'ClassificationDataset'
train_dataloader = dict(
    num_workers=0,  # the images stay on the device
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, data_root=data_root, split='train'),
)
val_dataloader = dict(
    num_workers=0,
    sampler=dict(type='EpochSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, data_root=data_root, split='test'),
)
test_dataloader = val_dataloader
