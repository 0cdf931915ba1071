# Fragment for a config of your own: hard constraint. Use as soft.py.
_base_ = './runtime.py'
moe = dict(num_experts=4, top_k=2, constraint=dict(type='RelativeImportanceConstraint', threshold=0.3))
