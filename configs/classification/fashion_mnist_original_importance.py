# Fashion-MNIST, the original gate, importance regulariser.
# Published: error 0.103, I(E;Y) 2.301, H_s 0.172, H_u 2.321.
_base_ = './fashion_mnist_original.py'
model = dict(moe=dict(constraint=dict(type='ImportanceConstraint', weight=0.2, dense=True)))
