# MNIST and the networks that arXiv 2302.14703 uses on it: five experts, and gates that are larger than they are.
_base_ = './paper_b.py'

train_dataloader = dict(batch_size=512, dataset=dict(name='MNIST'))
val_dataloader = dict(batch_size=2000, dataset=dict(name='MNIST'))
test_dataloader = val_dataloader

hidden_channels = 32
query = dict(type='ConvNetGate', image_size=28, channels=(1,), hidden=(128,))
plain_gate = dict(type='ConvNetGate', image_size=28, channels=(1,), hidden=(128, 32))
model = dict(
    num_classes=10,
    data_preprocessor=dict(type='ClassificationPreprocessor', mean=(0.1307,), std=(0.3081,)),
    expert=dict(in_channels=1, image_size=28, channels=(1,), hidden=(5, 32)),
    moe=dict(gate=plain_gate),
)
