"""Adds configs and tools to the wheel; everything else is in pyproject.toml.

They go where mim and mmengine look for those of mmdet's packages: moe_det/.mim. An editable install uses the clone's.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies ``configs``, ``tools`` and ``model-index.yml`` into the package that is built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'moe_det', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy2(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithConfigs})
