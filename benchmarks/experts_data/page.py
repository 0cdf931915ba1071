"""The page that benchmarks/experts_and_data.py writes from its record."""

from __future__ import annotations

from statistics import fmean

from common.page import dates, origins, spread, table

DATA_SETS = {'mnist': 'MNIST', 'fashion_mnist': 'Fashion-MNIST'}

INTRODUCTION = """# More data, more experts?

An autoencoder with a gate and E decoders, without labels, on growing parts of a data set (SMoE-VAE,
[arXiv 2509.10025](https://arxiv.org/abs/2509.10025), there on QuickDraw, where the best number of decoders in use grows
with the data). A cell is the squared error of a test image, summed over its pixels, drawn by the decoder with the
largest probability, and in brackets the number of decoders in use, those of more than one test image in a hundred;
means over seeds, ± standard deviation (n − 1). Settings as published but for the data and the number of epochs
(`configs/classification/_base_/mixture_vae.py`).
"""


def best_by_active(runs: list[dict]) -> tuple[int, float]:
    """The number of decoders in use whose runs have the lowest mean error, and that error."""
    by_active: dict[int, list[float]] = {}
    for run in runs:
        by_active.setdefault(int(run['active_experts']), []).append(run['squared_error'])
    return min(((active, fmean(errors)) for active, errors in by_active.items()), key=lambda pair: pair[1])


def page(runs: list[dict]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for epochs, data_set in sorted({(run['epochs'], run['data_set']) for run in runs}):
        chosen = [run for run in runs if (run['epochs'], run['data_set']) == (epochs, data_set)]
        parts.append(f'## {DATA_SETS[data_set]}, {epochs} epochs\n')
        experts = sorted({run['experts'] for run in chosen})
        rows = []
        for share in sorted({run['share'] for run in chosen}):
            of_share = [run for run in chosen if run['share'] == share]
            cells = []
            for number in experts:
                cell = [run for run in of_share if run['experts'] == number]
                active = f' ({fmean(run["active_experts"] for run in cell):.1f})' if cell else ''
                cells.append(spread([run['squared_error'] for run in cell]) + active)
            best, error = best_by_active(of_share)
            rows.append([f'{share:g} %', *cells, f'{best} ({error:.2f})'])
        heads = ['training images', *(f'E = {number}' for number in experts), 'best number in use']
        parts += ['\n'.join(table(heads, rows)), '']
    for (machine, versions, command), of_origin in origins(runs).items():
        parts.append(f'{len(of_origin)} runs, {dates(of_origin)}: {machine}; {versions}.\n\n    {command}\n')
    return '\n'.join(parts)
