# The detector of configs/shapes/kinds_experts.py with gates that are to decide alike for changed images.
_base_ = '../../configs/shapes/kinds_experts.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='RoutingConsistencyHook', weight=1.0, changes=['flip', 'noise:8', 'scale:0.75']),
]
