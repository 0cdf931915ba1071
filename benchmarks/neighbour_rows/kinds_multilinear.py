# The detector of configs/shapes/kinds_dense.py whose pyramid has lateral convolutions of factorised experts.
_base_ = '../../configs/shapes/kinds_dense.py'

model = dict(
    type='WithExperts',
    detector='RetinaNet',
    experts=[dict(modules='neck.lateral_convs.*', type='MuConv2d', num_experts=8, factors='cp')],
)
custom_hooks = [*_base_.custom_hooks, dict(type='MoEHook', interval=10)]
