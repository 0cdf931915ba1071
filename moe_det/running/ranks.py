"""Several processes: what mmengine's launchers leave to the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from ..common.console import local_rank, warn
from ..common.share import ALONE, Share
from ..errors import MoEConfigError


def prepare_ranks(cfg: Config) -> None:
    """Checks the launcher's environment; on CPUs starts the process group, which mmengine does for GPUs alone.

    Args:
        cfg: the config of the run with its ``launcher``; on CPUs its backend and model wrapper are set, in place.

    Raises:
        MoEConfigError: the launcher did not start this process, or cannot run on CPUs.
    """
    launcher = cfg.launcher
    variable, starter = {
        'pytorch': ('RANK', 'torchrun (torchrun --nproc_per_node=GPUS -m moe_det train ... --launcher pytorch)'),
        'slurm': ('SLURM_PROCID', 'srun (srun --ntasks=GPUS moe-det train ... --launcher slurm)'),
        'mpi': ('OMPI_COMM_WORLD_RANK', 'mpirun'),
    }[launcher]
    if variable not in os.environ:
        raise MoEConfigError(
            f'--launcher {launcher}: {variable} is not in the environment: start the script by {starter}, or leave '
            'out --launcher for one process'
        )
    os.environ.setdefault('LOCAL_RANK', str(local_rank()))  # mmengine's DDP reads it under every launcher
    if get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise MoEConfigError(f'--launcher {launcher}: several processes on CPUs work with --launcher pytorch only')
    settings = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
    if 'gloo' not in settings.get('backend', 'nccl'):
        warn('no GPU here: the processes communicate through gloo (in the config: env_cfg.dist_cfg.backend=gloo)')
        settings['backend'] = 'gloo'
    cfg.merge_from_dict({'env_cfg.dist_cfg': settings})
    if not dist.is_initialized():
        limit: dict[str, Any] = dict(timeout=timedelta(seconds=settings['timeout'])) if settings.get('timeout') else {}
        dist.init_process_group(settings['backend'], **limit)
    if cfg.get('model_wrapper_cfg') is None:
        # mmengine gives DDP this rank's GPU; modules on a CPU need none given
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


@contextmanager
def ranks_with_files(launcher: str) -> Iterator[Share]:
    """Joins the processes of a tool that exchange results through a folder, and only have to wait for each other.

    Args:
        launcher: ``'none'``, or ``'pytorch'`` when torchrun has started this process.

    Raises:
        MoEConfigError: torchrun has not.
    """
    if launcher == 'none':
        yield ALONE
        return
    if 'RANK' not in os.environ:
        raise MoEConfigError(
            f'--launcher {launcher}: RANK is not in the environment: start the tool by torchrun, or leave out '
            '--launcher for one process'
        )
    # hours: rank 0 computes statistics while the others may be at the next checkpoint
    dist.init_process_group('gloo', timeout=timedelta(hours=24))
    try:
        yield Share(dist.get_rank(), dist.get_world_size(), dist.barrier)
    finally:
        leave_ranks()


def leave_ranks() -> None:
    """Ends this process's part in the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
