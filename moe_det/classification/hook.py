"""What a run of a classifier needs in addition to mmengine's hooks."""

from __future__ import annotations

from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..common.runner_parts import plain_model
from ..errors import MoEConfigError
from .dataset import ClassificationDataset
from .expert_classes import expert_class_figure, figure_pixels


class ClassificationHook(DistSamplerSeedHook):
    """Gives the sampler the run's seed and epoch, checks that data and model have the same classes, draws a figure.

    After a test the table of samples by expert and class of ``ClassificationMetric`` goes to the visualisation backends
    as the picture ``experts_and_classes_<layer>``. The hook replaces mmengine's sampler hook,
    ``default_hooks=dict(sampler_seed=...)``. Without a seed in the config mmengine draws one and keeps it in the
    checkpoint; a resumed run then continues in the order of the first.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks the classes of the training data."""
        _prepare(runner, runner.train_loop.dataloader, 'train_dataloader')

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets seed and epoch."""
        sampler = runner.train_loop.dataloader.sampler
        if runner.seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = runner.seed
        super().before_train_epoch(runner)

    def before_val(self, runner: Runner) -> None:
        """Checks the classes of the validation data."""
        _prepare(runner, runner.val_loop.dataloader, 'val_dataloader')

    def before_test(self, runner: Runner) -> None:
        """Checks the classes of the test data."""
        _prepare(runner, runner.test_loop.dataloader, 'test_dataloader')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Draws the experts and their classes."""
        for metric in runner.test_evaluator.metrics:
            for layer, found in getattr(metric, 'decompositions', {}).items():
                classes = metric.class_names(found.table.shape[1])
                caption = (
                    f'{found.samples} test images by the expert with the largest gate probability and the class that '
                    f'it predicts; the shade is the share of the class. I(E;Y) = {found.information:.2f}, H_s = '
                    f'{found.row_entropy:.2f}, H_u = {found.batch_entropy:.2f} bits, error {found.error:.3f}.'
                )
                figure = expert_class_figure(found.table, classes, f'Experts and classes: {layer}', caption)
                name = f'experts_and_classes_{layer}'.replace('/', '-')
                runner.visualizer.add_image(name, figure_pixels(figure), step=runner.iter)


def _prepare(runner: Runner, loader: DataLoader, where: str) -> None:
    """Checks the classes of data set and model, and takes ``pin_memory`` out where there is nothing to pin.

    Raises:
        MoEConfigError: the model has another number of classes than the data set.
    """
    data = loader.dataset
    if isinstance(data, ClassificationDataset) and loader.num_workers == 0 and data.device.type != 'cpu':
        loader.pin_memory = False  # its batches are on the device, and torch pins memory of the host alone
    model = plain_model(runner)
    outputs = getattr(model, 'num_classes', None)
    classes = (getattr(data, 'metainfo', None) or {}).get('classes')
    if outputs is not None and classes is not None and len(classes) != outputs:
        raise MoEConfigError(
            f'{where}: the data set has {len(classes)} classes, the model num_classes={outputs}; set '
            f'model.num_classes={len(classes)}'
        )
