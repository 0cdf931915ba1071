"""Writes docs/configuration.md from the signatures and docstrings of the code, so that it cannot go stale.

python tools/misc/write_config_reference.py            # writes the page
python tools/misc/write_config_reference.py --check    # exit status 1 when the page is out of date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of _start.py
from _start import ROOT

PAGE = ROOT / 'docs' / 'configuration.md'

HEADER = """# Configuration reference

Generated from the docstrings by `python tools/misc/write_config_reference.py`; do not edit by hand.

Every key is checked when the model is built: an unknown key, a value out of range, or keys that contradict each
other give one error that names the key.
"""


def section(docstring: str, title: str) -> dict[str, str]:
    """Entries of a Google docstring section: name -> text on one line."""
    match = re.search(rf'^{title}:\n((?:[ ]+.*\n|\n)+)', docstring + '\n', flags=re.MULTILINE)
    if match is None:
        return {}
    entries: dict[str, str] = {}
    name = ''
    for line in match[1].splitlines():
        start = re.match(r'    ([*\w]+):\s?(.*)', line)
        if start:
            name = start[1]
            entries[name] = start[2]
        elif name:
            entries[name] += ' ' + line.strip()
    return {key: text.strip() for key, text in entries.items()}


def summary(docstring: str) -> str:
    """The docstring up to its first section, without code examples."""
    text = re.split(r'^(?:Args|Attributes|Raises|Returns|Example|Examples):\n', docstring, flags=re.MULTILINE)[0]
    text = re.sub(r'::\n\n(?:[ ]+.*\n|\n)*', '.\n\n', text)
    return markdown(text.strip())


def markdown(text: str) -> str:
    """Turns reStructuredText marks into Markdown ones."""
    text = re.sub(r':\w+:`~?([^`]+)`', lambda m: f'`{m[1].rsplit(".", 1)[-1]}`', text)
    return text.replace('``', '`')


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A Markdown table; bars in the cells are escaped."""
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |')
    return '\n'.join(lines)


def settings_table(cls: type) -> str:
    """Fields of a settings dataclass with default and description."""
    texts = section(inspect.getdoc(cls), 'Attributes')
    rows = []
    for field in dataclasses.fields(cls):
        default = field.default_factory() if callable(field.default_factory) else field.default
        rows.append((f'`{field.name}`', f'`{default!r}`', markdown(texts[field.name])))
    return table(rows, ('key', 'default', 'meaning'))


def nested_keys(cls: type, name: str = 'moe') -> str:
    """The bullet list that a class's docstring gives for its argument ``moe``, as a list."""
    text = section(inspect.getdoc(cls), 'Args')[name]
    items = [markdown(item.strip()) for item in re.split(r'\s- (?=``)', text)[1:]]
    return '\n'.join(f'- {item}' for item in items)


def arguments_table(cls: type, hidden: tuple[str, ...] = ()) -> str:
    """Arguments of a constructor with default and description."""
    texts = section(inspect.getdoc(cls), 'Args')
    for base in cls.__mro__[1:-1]:
        texts = {**section(inspect.getdoc(base) or '', 'Args'), **texts}
    rows = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in hidden or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        for attribute in ('default_weight', 'default_threshold'):
            if default is None and name == attribute.removeprefix('default_'):
                default = getattr(cls, attribute)
        shown = 'required' if default is parameter.empty else f'`{default!r}`'
        rows.append((f'`{name}`', shown, markdown(texts[name])))
    return table(rows, ('key', 'default', 'meaning')) if rows else ''


def page() -> str:
    """The whole page."""
    import moe_det  # noqa: F401
    from moe_det.detectors import MixtureOfDetectors, WithClusters, WithExperts
    from moe_det.hooks.auxiliary_loss_hook import AuxiliaryLossHook
    from moe_det.hooks.consistency_hook import RoutingConsistencyHook
    from moe_det.hooks.dense_teacher_hook import DenseTeacherHook
    from moe_det.hooks.expert_size_hook import ExpertSizeHook
    from moe_det.hooks.moe_hook import MoEHook
    from moe_det.hooks.schedule_hook import MoEScheduleHook
    from moe_det.layers import MoEBlock, MoEConv2d, MoEFFN, MoELinear, MoESettings, MuConv2d, MuFFN, MuLinear
    from moe_det.layers.mu_moe import MuSettings
    from moe_det.models import FrozenFPN, MoEResNet, MoERetinaHead
    from moe_det.models.distillation import KINDS
    from moe_det.registry import CONSTRAINTS, GATES
    from moe_det.robustness.bad_images_hook import SkipBadImagesHook
    from moe_det.robustness.exact_resume_hook import ExactResumeHook
    from moe_det.robustness.finite_hook import FiniteHook
    from moe_det.routing import HardConstraint
    from moe_det.running.amp import CPUAmpOptimWrapper

    parts = [HEADER, '## Keys of every MoE layer\n', settings_table(MoESettings)]
    parts += ["\n## `bbox_head=dict(type='MoERetinaHead', moe=dict(...))`\n", summary(inspect.getdoc(MoERetinaHead))]
    parts += ['\nKeys of `moe` in addition to those above:\n', nested_keys(MoERetinaHead)]
    parts += ['\n### `moe=dict(distillation=dict(type=...))`']
    for name, cls in KINDS.items():
        parts += [f'\n#### `{name}`\n', summary(inspect.getdoc(cls)), '\n' + arguments_table(cls)]
    parts += ["\n## `backbone=dict(type='MoEResNet', moe=dict(...))`\n", summary(inspect.getdoc(MoEResNet))]
    parts += ['\nKeys of `moe` in addition to those above:\n', nested_keys(MoEResNet)]
    parts += ['\nKeys besides `moe`:\n', arguments_table(MoEResNet, hidden=('depth', 'moe'))]
    parts += ["\n## `conv_cfg=dict(type='MoEConv2d', ...)`\n", summary(inspect.getdoc(MoEConv2d))]
    convolution = tuple(name for name in inspect.signature(MoEConv2d).parameters if name != 'num_levels')
    parts += ['\n' + arguments_table(MoEConv2d, hidden=convolution)]
    parts += ["\n## `plugins=[dict(cfg=dict(type='MoEBlock', ...), ...)]`\n", summary(inspect.getdoc(MoEBlock))]
    parts += ['\n' + arguments_table(MoEBlock, hidden=('in_channels',))]
    parts += ["\n## `model=dict(type='WithExperts', ...)`\n", summary(inspect.getdoc(WithExperts))]
    parts += ['\n' + arguments_table(WithExperts)]
    parts += ["\n## `model=dict(type='WithClusters', ...)`\n", summary(inspect.getdoc(WithClusters))]
    parts += ['\n' + arguments_table(WithClusters)]
    parts += ["\n## `model=dict(type='MixtureOfDetectors', ...)`\n", summary(inspect.getdoc(MixtureOfDetectors))]
    parts += ['\n' + arguments_table(MixtureOfDetectors)]
    parts += ["\n## `experts=[dict(type='MoEFFN', modules=...)]`\n", summary(inspect.getdoc(MoEFFN))]
    parts += ['\nKeys in addition to those of every MoE layer:\n', nested_keys(MoEFFN, '**moe')]
    parts += ["\n## `experts=[dict(type='MoELinear', modules=...)]`\n", summary(inspect.getdoc(MoELinear))]
    parts += ["\n## `conv_cfg=dict(type='MuConv2d', ...)`\n", summary(inspect.getdoc(MuConv2d))]
    parts += ['\n' + settings_table(MuSettings)]
    for cls in (MuFFN, MuLinear):
        parts += [f"\n## `experts=[dict(type='{cls.__name__}', modules=...)]`\n", summary(inspect.getdoc(cls))]
        parts += ['\nKeys are those of `MuConv2d`.']
    parts += ["\n## `neck=dict(type='FrozenFPN', ...)`\n", summary(inspect.getdoc(FrozenFPN))]
    parts += ["\n## `custom_hooks=[dict(type='MoEHook')]`\n", summary(inspect.getdoc(MoEHook))]
    parts += ['\n' + arguments_table(MoEHook)]
    parts += ["\n## `custom_hooks=[dict(type='MoEScheduleHook', ...)]`\n", summary(inspect.getdoc(MoEScheduleHook))]
    parts += ['\n' + arguments_table(MoEScheduleHook)]
    parts += ["\n## `custom_hooks=[dict(type='ExpertSizeHook')]`\n", summary(inspect.getdoc(ExpertSizeHook))]
    parts += ['\n' + arguments_table(ExpertSizeHook)]
    parts += ["\n## `custom_hooks=[dict(type='RoutingConsistencyHook', ...)]`\n"]
    parts += [summary(inspect.getdoc(RoutingConsistencyHook)), '\n' + arguments_table(RoutingConsistencyHook)]
    parts += ["\n## `custom_hooks=[dict(type='DenseTeacherHook', ...)]`\n", summary(inspect.getdoc(DenseTeacherHook))]
    parts += ['\n' + arguments_table(DenseTeacherHook)]
    parts += ["\n## `custom_hooks=[dict(type='ExactResumeHook')]`\n", summary(inspect.getdoc(ExactResumeHook))]
    parts += ["\n## `custom_hooks=[dict(type='AuxiliaryLossHook', ...)]`\n", summary(inspect.getdoc(AuxiliaryLossHook))]
    parts += ['\n' + arguments_table(AuxiliaryLossHook)]
    parts += ["\n## `custom_hooks=[dict(type='SkipBadImagesHook')]`\n", summary(inspect.getdoc(SkipBadImagesHook))]
    parts += ['\n' + arguments_table(SkipBadImagesHook)]
    parts += ["\n## `custom_hooks=[dict(type='FiniteHook')]`\n", summary(inspect.getdoc(FiniteHook))]
    parts += ['\n' + arguments_table(FiniteHook)]
    parts += ["\n## `optim_wrapper=dict(type='CPUAmpOptimWrapper', ...)`\n"]
    parts += [summary(inspect.getdoc(CPUAmpOptimWrapper))]
    parts += ['\n## Gates: `gate=dict(type=...)`']
    for name, cls in GATES.module_dict.items():
        parts += [f'\n### `{name}`\n', summary(inspect.getdoc(cls))]
        extra = arguments_table(cls, hidden=('in_channels', 'num_experts', 'key_channels'))
        parts += ['\n' + extra] if extra else []
    for title, hard in (('Soft', False), ('Hard', True)):
        parts += [f'\n## {title} constraints: `constraint=dict(type=...)`']
        for name, cls in CONSTRAINTS.module_dict.items():
            if issubclass(cls, HardConstraint) == hard:
                parts += [f'\n### `{name}`\n', summary(inspect.getdoc(cls)), '\n' + arguments_table(cls)]
    return '\n'.join([*parts, *classification()]) + '\n'


def classification() -> list[str]:
    """Sections on the image classifiers, their data and their metric."""
    from moe_det.classification.adversarial import AdversarialTestHook, AdversarialTrainingHook
    from moe_det.classification.augmentation import BatchAugmentation
    from moe_det.classification.dataset import ClassificationDataset
    from moe_det.classification.epoch_sampler import EpochSampler
    from moe_det.classification.hook import ClassificationHook
    from moe_det.classification.metric import ClassificationMetric
    from moe_det.classification.mixture import MixtureClassifier
    from moe_det.classification.mixture_vae import MixtureVAE, ReconstructionMetric
    from moe_det.classification.networks import SmallConvNet
    from moe_det.classification.preprocessor import ClassificationPreprocessor
    from moe_det.classification.resnet_classifier import ResNetClassifier
    from moe_det.models.small_images import SmallImageResNet

    parts = ['\n## Image classification']
    for key, cls, hidden in (
        ("model=dict(type='MixtureClassifier', ...)", MixtureClassifier, ()),
        ('model=dict(expert=dict(...))', SmallConvNet, ('num_outputs',)),
        ("model=dict(type='ResNetClassifier', ...)", ResNetClassifier, ()),
        ("model=dict(type='MixtureVAE', ...)", MixtureVAE, ()),
        ("test_evaluator=dict(type='ReconstructionMetric', ...)", ReconstructionMetric, ('collect_device', 'prefix')),
        ("model=dict(backbone=dict(type='SmallImageResNet', ...))", SmallImageResNet, None),
        ("model=dict(data_preprocessor=dict(type='ClassificationPreprocessor', ...))", ClassificationPreprocessor, ()),
        ("dataset=dict(type='ClassificationDataset', ...)", ClassificationDataset, ()),
        ('dataset=dict(augment=dict(...))', BatchAugmentation, ()),
        ("sampler=dict(type='EpochSampler', ...)", EpochSampler, ('dataset',)),
        ("test_evaluator=dict(type='ClassificationMetric', ...)", ClassificationMetric, ('collect_device', 'prefix')),
        ("default_hooks=dict(sampler_seed=dict(type='ClassificationHook'))", ClassificationHook, ()),
        ("custom_hooks=[dict(type='AdversarialTrainingHook')]", AdversarialTrainingHook, ()),
        ("custom_hooks=[dict(type='AdversarialTestHook')]", AdversarialTestHook, ()),
    ):
        parts += [f'\n### `{key}`\n', summary(inspect.getdoc(cls))]
        extra = '' if hidden is None else arguments_table(cls, hidden)  # None: the arguments are mmdet's
        parts += ['\n' + extra] if extra else []
    return parts


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description='Write docs/configuration.md from the code.')
    parser.add_argument('--check', action='store_true', help='only compare; exit status 1 when out of date')
    args = parser.parse_args(argv)
    text = page()
    if args.check:
        if PAGE.read_text(encoding='utf-8') == text:
            return 0
        page_name, script = PAGE.relative_to(ROOT), Path(__file__).resolve().relative_to(ROOT)
        print(f'{page_name} is out of date: run python {script}', file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding='utf-8')
    print(f'wrote {PAGE.relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
