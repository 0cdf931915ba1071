# The detector of configs/shapes/kinds_experts.py with two of four towers, which learn from the mixture of all.
_base_ = '../../configs/shapes/kinds_experts.py'

model = dict(
    bbox_head=dict(
        moe=dict(placement='tower', num_experts=4, top_k=2, distillation=dict(type='DenseTeacher', weight=1.0))
    )
)
custom_hooks = [*_base_.custom_hooks, dict(type='DenseTeacherHook')]
