# Fashion-MNIST and the networks that arXiv 2302.14703 uses on it: five experts, and larger gates.
_base_ = './paper_b.py'

data_root = 'data'
dataset_type = 'ClassificationDataset'
train_dataloader = dict(
    batch_size=512,
    num_workers=0,  # the images stay on the device
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, name='FashionMNIST', data_root=data_root, split='train'),
)
val_dataloader = dict(
    batch_size=2000,
    num_workers=0,
    sampler=dict(type='EpochSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, name='FashionMNIST', data_root=data_root, split='test'),
)
test_dataloader = val_dataloader

hidden_channels = 32
query = dict(type='ConvNetGate', image_size=28, channels=(8,), norm=(0,), hidden=(512,))
plain_gate = dict(type='ConvNetGate', image_size=28, channels=(8,), norm=(0,), hidden=(512, 32))
model = dict(
    type='MixtureClassifier',
    num_classes=10,
    data_preprocessor=dict(type='ClassificationPreprocessor', mean=(0.2860,), std=(0.3530,)),
    expert=dict(in_channels=1, image_size=28, channels=(1,), hidden=(64, 32)),
    moe=dict(
        num_experts=5,
        top_k=5,  # every expert is mixed
        soft_mixture=True,
        noise=False,
        gate=plain_gate,
    ),
)
