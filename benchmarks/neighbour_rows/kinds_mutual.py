# The detector of configs/shapes/kinds_experts.py with two of four towers, which learn from each other.
_base_ = '../../configs/shapes/kinds_experts.py'

model = dict(
    bbox_head=dict(
        moe=dict(placement='tower', num_experts=4, top_k=2, distillation=dict(type='MutualDistillation', weight=1.0))
    )
)
