# CIFAR-10, the original gate, importance regulariser.
# Published: error 0.254, I(E;Y) 2.322, H_s 0.376, H_u 2.171.
_base_ = './cifar10_original.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
