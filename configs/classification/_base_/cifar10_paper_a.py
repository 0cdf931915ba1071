# CIFAR-10 with the settings of cifar100_paper_a.py and its own mean and standard deviation.
_base_ = './cifar100_paper_a.py'

cifar10 = dict(name='CIFAR10', image_folder='cifar10/cifar10-jpg.tar.gz')  # the tar file where the original is missing
train_dataloader = dict(dataset=cifar10)
val_dataloader = dict(dataset=cifar10)
test_dataloader = dict(dataset=cifar10)
val_evaluator = dict(top_errors=())
test_evaluator = dict(top_errors=())
normalisation = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
