"""Experts without labels: the variational autoencoder with a mixture of decoders of arXiv 2509.10025."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..checks import check_count, checked_number
from ..errors import DataError, MoEConfigError
from ..layers.settings import MoESettings
from ..routing.collection import collect_losses
from ..routing.dispatch import plan_dispatch
from ..routing.router import find_routers
from ..routing.routing import Routing
from ..routing.rows import rows_of
from .base import MODES, choose_in_evaluation
from .preprocessor import ClassificationPreprocessor

IMAGE_SIZE, SMALLEST_MAP = 28, 7
LIVING_SHARE = 0.01  # of the images: an expert that gets fewer is not active; our choice, as elsewhere in this package


class LiteDecoder(nn.Module):
    """Latent vector -> image of 28 x 28: linear, then twice up-sampling and a convolution; about 4,000 parameters.

    3x3 kernels with padding and nearest-neighbour up-sampling are our choice: the source gives channels alone.

    Args:
        latent: values of the latent vector.
        out_channels: of the image.
    """

    def __init__(self, latent: int, out_channels: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(latent, 8 * SMALLEST_MAP**2)
        self.conv1 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(R, latent, 1, 1) -> (R, C, 28, 28) in 0 ... 1."""
        x = self.fc(z.flatten(1)).unflatten(1, (8, SMALLEST_MAP, SMALLEST_MAP))
        x = F.elu(self.conv1(F.interpolate(x, scale_factor=2)))
        return self.conv2(F.interpolate(x, scale_factor=2)).sigmoid()


class MixtureVAE(BaseModel):
    """One encoder, a gate on the latent vector, and E decoders of which evaluation runs one (SMoE-VAE).

    In training x' = sum_e p_e D_e(z) over all decoders, z drawn, and the losses are the published ones: the squared
    error summed over pixels and batch, ``beta`` times the KL of z from the normal distribution, summed too, and
    ``UsageEntropyConstraint``, whose terms are means over the batch, so that the batch size weighs them. In evaluation
    z is its mean and the decoder with the largest probability draws alone. A batch is as of the image classifiers;
    labels are not used. 3x3 kernels in the encoder, and the mean of z in evaluation, are our choice.

    - ``mode='tensor'`` returns images (N, C, 28, 28).
    - ``mode='loss'`` returns ``loss_reconstruction``, ``loss_kl`` and ``loss_moe_<constraint>``.
    - ``mode='predict'`` returns one dict for the batch, in a list: ``errors`` (N,) squared error of each image, and
      ``experts`` (N,) the decoder with the largest probability.

    Args:
        moe: keys of ``MoESettings``; ``top_k=num_experts`` with ``soft_mixture=True`` mixes all decoders in training,
            and ``num_experts=1`` is a plain autoencoder.
        latent: values of z.
        beta: factor of the KL, >= 0.
        in_channels: of the images.
        data_preprocessor: None takes ``ClassificationPreprocessor`` without mean and std: the decoders end in 0 ... 1.
        test_top_k: decoders in evaluation.
        init_cfg: mmengine's initialisation.

    Raises:
        MoEConfigError: a key or value that cannot be built from.
    """

    def __init__(
        self,
        moe: dict,
        latent: int = 32,
        beta: float = 0.01,
        in_channels: int = 1,
        data_preprocessor: dict | None = None,
        test_top_k: int | None = 1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(ClassificationPreprocessor() if data_preprocessor is None else data_preprocessor, init_cfg)
        for key, value in (('latent', latent), ('in_channels', in_channels), ('test_top_k', test_top_k)):
            if value is not None or key != 'test_top_k':
                check_count('model', key, value)
        try:
            self.beta = checked_number('beta', beta)
        except ValueError as error:
            raise MoEConfigError(f'model.{error}') from error
        self.settings = MoESettings.from_config(dict(moe), 'model.moe')
        for key, kept in (('unit', 'level'), ('expert', None), ('shared_expert', False), ('mixes', 'outputs')):
            if getattr(self.settings, key) != kept:
                raise MoEConfigError(f'model.moe.{key}={getattr(self.settings, key)!r}: a MixtureVAE takes {kept!r}')
        self.test_top_k = test_top_k
        widths = [in_channels, 32, 64, 128]
        convs: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            convs += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*convs, nn.Flatten())
        self.to_mean = nn.Linear(widths[-1] * SMALLEST_MAP**2, latent)
        self.to_log_variance = nn.Linear(widths[-1] * SMALLEST_MAP**2, latent)
        self.expert_group = self.settings.build_experts(lambda: LiteDecoder(latent, in_channels))
        self.router = self.settings.build_router(latent, 'model.moe', label='decoders', key_channels=None)
        choose_in_evaluation(self, test_top_k)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 28, 28) -> mean and logarithm of the variance of z, (N, latent).

        Raises:
            DataError: images of another size.
        """
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise DataError(f'MixtureVAE takes images of {IMAGE_SIZE} x {IMAGE_SIZE}, got {tuple(images.shape[-2:])}')
        features = self.encoder(images)
        return self.to_mean(features), self.to_log_variance(features)

    def decode(self, z: Tensor) -> tuple[Tensor, Routing | None]:
        """(N, latent) -> images (N, C, 28, 28), and the gate's decision."""
        rows, layout = rows_of([z[:, :, None, None]], 'level')
        if self.router is None:
            return self.expert_group(rows, None, None)[0], None
        routing = self.router(rows, layout)
        plan = plan_dispatch([routing], layout.level_rows)[0] if self.settings.sorts else None
        return self.expert_group(rows, routing, layout, plan)[0], routing

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """See the class.

        Args:
            inputs: (N, C, 28, 28) in 0 ... 1.
            labels: unused.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Raises:
            ValueError: an unknown mode.
        """
        if mode == 'loss':
            return self.loss(inputs)
        if mode not in MODES:
            raise ValueError(f'mode={mode!r}: expected one of {", ".join(MODES)}')
        choose_in_evaluation(self, self.test_top_k)
        images, routing = self.decode(self.encode(inputs)[0])
        if mode == 'tensor':
            return images
        errors = (images - inputs).square().flatten(1).sum(1)
        experts = errors.new_zeros(len(errors), dtype=torch.long) if routing is None else routing.probs.argmax(1)
        return [dict(errors=errors, experts=experts)]

    def loss(self, inputs: Tensor) -> dict[str, Tensor]:
        """The losses of a batch; see the class."""
        routers = list(find_routers(self).values())
        for router in routers:
            router.start_step()
        mean, log_variance = self.encode(inputs)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        images, _ = self.decode(z)
        return {
            'loss_reconstruction': (images - inputs).square().sum(),
            'loss_kl': self.beta * -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(),
            **collect_losses(routers),
        }


class ReconstructionMetric(BaseMetric):
    """``squared_error``, the sum over an image's pixels as the mean over images, and ``active_experts``.

    A decoder is active if it has the largest probability for more than one image in a hundred.

    Args:
        collect_device: of ``BaseMetric``.
        prefix: put before the names, with a slash.
    """

    default_prefix = ''

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device, prefix)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Adds a batch as ``MixtureVAE`` predicts it."""
        for prediction in data_samples:
            errors, experts = prediction['errors'], prediction['experts']
            counts = torch.bincount(experts).cpu()
            self.results.append(dict(images=len(errors), error=float(errors.double().sum()), counts=counts))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The numbers of all batches.

        Raises:
            DataError: there was no image.
        """
        images = sum(batch['images'] for batch in results)
        if not images:
            raise DataError('ReconstructionMetric: no image was reconstructed')
        counts = torch.zeros(max(len(batch['counts']) for batch in results), dtype=torch.long)
        for batch in results:
            counts[: len(batch['counts'])] += batch['counts']
        return {
            'squared_error': sum(batch['error'] for batch in results) / images,
            'active_experts': int((counts > LIVING_SHARE * images).sum()),
        }
