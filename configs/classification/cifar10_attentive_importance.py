# CIFAR-10, attentive gate, importance regulariser.
# Published: error 0.238, I(E;Y) 2.295, H_s 0.217, H_u 2.007.
_base_ = './cifar10_attentive.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.8, dense=True)))
