# MNIST, the original gate, importance regulariser.
# Published: error 0.032, I(E;Y) 2.262, H_s 0.061, H_u 2.320.
_base_ = './mnist_original.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
