"""Starts a script on the pretended GPU: python tests/device/start.py SCRIPT [ARGUMENTS]

The script sees one CUDA device; pretended_gpu.py says what it is and what it cannot show.
"""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHIM = HERE / 'shim.cpp'
CHECKOUT = HERE.parents[1]
CACHE = CHECKOUT / 'build' / 'pretended_gpu'  # `make clean` removes it


def _includes() -> list[Path]:
    """Folders with the headers of the CUDA runtime, as torch's wheels bring them."""
    site = Path(sysconfig.get_path('purelib'))
    folders = [*site.glob('nvidia/cu*/include'), site / 'triton' / 'backends' / 'nvidia' / 'include']
    return [folder for folder in folders if folder.is_dir()]


def why_not() -> str | None:
    """Why this machine cannot pretend, or None."""
    import torch

    if sys.platform != 'linux' or platform.machine() != 'x86_64':
        return f'the pretended GPU needs Linux on x86-64, this is {sys.platform} on {platform.machine()}'
    if torch.version.cuda is None:
        return f'the pretended GPU needs a CUDA build of torch, this is torch {torch.__version__}'
    if shutil.which('g++') is None:
        return 'the pretended GPU needs g++'
    if not any((folder / 'cuda_runtime_api.h').is_file() for folder in _includes()):
        return "the pretended GPU needs the CUDA runtime's headers, which torch's wheels from the package index bring"
    return None


def build() -> Path:
    """The compiled runtime; it is built once for each version of the source and of the headers."""
    flags = ['-O1', '-std=c++17', '-shared', '-fPIC', '-Wl,-soname,libcuda.so.1', *(f'-I{x}' for x in _includes())]
    library = CACHE / f'{hashlib.sha256(SHIM.read_bytes() + repr(flags).encode()).hexdigest()[:16]}.so'
    if not library.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f'.{os.getpid()}')  # others may build at the same time
        subprocess.run(['g++', *flags, str(SHIM), '-o', str(part)], check=True)
        part.replace(library)
    return library


def environment() -> dict[str, str]:
    """The environment of a process on the pretended GPU."""
    return {**os.environ, 'LD_PRELOAD': str(build()), 'CUDA_VISIBLE_DEVICES': '0', 'PYTHONDONTWRITEBYTECODE': '1'}


def main() -> None:
    """Starts itself again with the runtime preloaded, then runs the script."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if str(CACHE) not in os.environ.get('LD_PRELOAD', ''):
        reason = why_not()
        if reason is not None:
            sys.exit(reason)
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    # the script's own folder first, as if Python had started it
    sys.path[:1] = [str(Path(script).resolve().parent), str(HERE)]
    import pretended_gpu  # noqa: F401  switches it on

    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
