# CIFAR-10 and the networks that arXiv 2302.14703 uses on it: five experts, and gates that are larger than they are.
_base_ = './paper_b.py'

# the image folder is read where torchvision's files are missing; it may be a tar file or a folder
data_root = 'data'
image_folder = 'cifar10/cifar10-jpg.tar.gz'
dataset_type = 'ClassificationDataset'
train_dataloader = dict(
    batch_size=128,
    num_workers=0,  # the images stay on the device
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, name='CIFAR10', data_root=data_root, split='train', image_folder=image_folder),
)
val_dataloader = dict(
    batch_size=1000,
    num_workers=0,
    sampler=dict(type='EpochSampler', shuffle=False, round_up=False),
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type=dataset_type, name='CIFAR10', data_root=data_root, split='test', image_folder=image_folder),
)
test_dataloader = val_dataloader

hidden_channels = 32
query = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 256), padding=1, hidden=(512,))
plain_gate = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 256), padding=1, hidden=(512, 32))
model = dict(
    type='MixtureClassifier',
    num_classes=10,
    data_preprocessor=dict(
        type='ClassificationPreprocessor', mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
    ),
    expert=dict(in_channels=3, image_size=32, channels=(3, 6, 12, 12), norm=(1, 3), padding=1, hidden=(64, 32)),
    moe=dict(
        num_experts=5,
        top_k=5,  # every expert is mixed
        soft_mixture=True,
        noise=False,
        gate=plain_gate,
    ),
)
