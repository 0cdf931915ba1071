# CIFAR-100, attentive gate, importance regulariser.
# Published: error 0.447 (top-5 0.188), I(E;Y) 3.652, H_s 1.114, H_u 3.855.
_base_ = './cifar100_attentive.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
