# As retinanet_moe_soft.py, and the two experts of a row learn from the mixture of all four, whose weights are the
# moving average of theirs. Validation and checkpoints have the averaged weights, as with mmengine's EMAHook.
_base_ = './retinanet_moe_soft.py'

model = dict(bbox_head=dict(moe=dict(distillation=dict(type='DenseTeacher', weight=1.0))))
custom_hooks = [*_base_.custom_hooks, dict(type='DenseTeacherHook')]
