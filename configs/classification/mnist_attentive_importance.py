# MNIST, attentive gate, importance regulariser.
# Published: error 0.035, I(E;Y) 2.260, H_s 0.055, H_u 2.266.
_base_ = './mnist_attentive.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
