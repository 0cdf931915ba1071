# Fashion-MNIST, attentive gate, importance regulariser.
# Published: error 0.098, I(E;Y) 2.233, H_s 0.101, H_u 2.319.
_base_ = './fashion_mnist_attentive.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.8, dense=True)))
