"""Finding what is NaN or infinite: a cheap flag for every step, and names for the step that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

_NAMED = 4  # in a message


def flag_of_gradients(gradients: Iterable[Tensor | None]) -> Tensor:
    """Tells on the device whether all gradients are finite, without a copy to the host.

    Args:
        gradients: None entries, of parameters that took no part, are left out.

    Returns:
        Tensor: a boolean scalar.
    """
    values = [g._values() if g.is_sparse else g for g in gradients if g is not None and g.numel()]
    if not values:
        return torch.tensor(True)
    if values[-1].device.type == 'cpu' and (flag := _all_finite(values, 2)):
        return flag  # ten times as fast as the largest value on a CPU, which may still clear squares that overflowed
    return _all_finite(values, float('inf'))


def _all_finite(values: list[Tensor], order: float) -> Tensor:
    """Whether the norms of tensors, made in one pass over all, are finite."""
    norms = torch._foreach_norm(values, order)
    return torch.isfinite(torch.stack([norm.to(norms[-1].device) for norm in norms])).all()


def non_finite_parameters(model: nn.Module, gradients: bool) -> str:
    """Names the parameters whose values, or gradients, are not all finite; an empty text for none."""
    bad = []
    for name, parameter in model.named_parameters():
        value = parameter.grad if gradients else parameter.detach()
        if value is not None and not torch.isfinite(value._values() if value.is_sparse else value).all():
            bad.append(name)
    more = f' and {len(bad) - _NAMED} more' if len(bad) > _NAMED else ''
    return ', '.join(bad[:_NAMED]) + more


def describe_images(inputs: tuple | None) -> str:
    """Names the images of a detector's call by id and path, as far as its samples know them.

    Args:
        inputs: positional and keyword arguments of the call.
    """
    args, kwargs = inputs or ((), {})
    samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
    samples = list(samples) if isinstance(samples, Sequence) else []
    names = []
    for sample in samples:
        ident, path = getattr(sample, 'img_id', None), getattr(sample, 'img_path', None)
        if ident is not None or path is not None:
            names.append(f'id {ident} ({path})' if path is not None else f'id {ident}')
    return ', '.join(names) or "not known (PackDetInputs needs 'img_id' and 'img_path' in meta_keys)"


class _FoundError(Exception):
    """Ends a forward as soon as a layer's output is not finite."""


def first_bad_layer(model: nn.Module, args: tuple, kwargs: dict) -> str | None:
    """Repeats a forward and returns the path of the first layer whose output is not finite, None if all are.

    The state that a forward moves (running statistics, constraints) is put back. Not for distributed runs, whose
    processes would wait for each other.

    Args:
        model: the detector.
        args: positional arguments of the call.
        kwargs: its keyword arguments.
    """
    found: list[str] = []

    def look(name: str):
        def see(module: nn.Module, inputs: tuple, output: object) -> None:
            if any(not torch.isfinite(value).all() for value in _floats(output)):
                found.append(f'{name} ({type(module).__name__})')
                raise _FoundError

        return see

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except _FoundError:
        pass
    except Exception:  # the run ends anyhow, with the message that this would only have completed
        return None
    finally:
        for handle in handles:
            handle.remove()
        model.load_state_dict(state)
    return found[0] if found else None


def _floats(output: object) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _floats(value)
