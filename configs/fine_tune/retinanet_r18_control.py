# The control of retinanet_r18_moe.py: its dense detector trained on for the same epochs at the same learning rate,
# without experts. Nothing is to be changed here.
_base_ = './retinanet_r18_moe.py'

model = dict(
    bbox_head=dict(
        _delete_=True,
        **{key: value for key, value in _base_.model.bbox_head.items() if key not in ('type', 'moe')},
        type='RetinaHead',
    )
)
custom_hooks = [dict(type='ExactResumeHook'), dict(type='SkipBadImagesHook'), dict(type='FiniteHook')]
