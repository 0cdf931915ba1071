# CIFAR-100, the original gate, importance regulariser.
# Published: error 0.492 (top-5 0.197), I(E;Y) 4.202, H_s 1.497, H_u 3.970.
_base_ = './cifar100_original.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
