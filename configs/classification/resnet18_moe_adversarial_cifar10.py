# resnet18_moe_soft_cifar10.py trained on the images of a PGD attack of seven steps of 2/255 within 8/255, and tested on
# those of twenty steps (arXiv 2509.05086, which has one mixture in the last stage of a ResNet on CIFAR-100). Experts,
# constraint and schedule are those of arXiv 2204.10598 and not that paper's (SGD, 100 epochs, experts of full width).
# A step costs about eight of a plain training.
_base_ = './resnet18_moe_soft_cifar10.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AdversarialTrainingHook'), dict(type='AdversarialTestHook')]
