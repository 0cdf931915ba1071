# The detector of configs/shapes/kinds_dense.py whose head has norms of its own for every level of the pyramid.
_base_ = '../../configs/shapes/kinds_dense.py'

custom_imports = dict(imports=['moe_det', 'pay.level_norm_head'], allow_failed_imports=False)
model = dict(bbox_head=dict(type='LevelNormRetinaHead'))
