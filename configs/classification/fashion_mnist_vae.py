# Fashion-MNIST without labels: ten decoders, a gate on the latent vector (SMoE-VAE, arXiv 2509.10025, on other data).
_base_ = './_base_/mixture_vae.py'
train_dataloader = dict(dataset=dict(name='FashionMNIST'))
val_dataloader = dict(dataset=dict(name='FashionMNIST'))
test_dataloader = val_dataloader
