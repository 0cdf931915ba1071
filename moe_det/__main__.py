"""``python -m moe_det COMMAND``: the same as ``moe-det COMMAND``."""

from .cli import main
from .commands.start import leave

if __name__ == '__main__':
    leave(main(program='python -m moe_det'))
