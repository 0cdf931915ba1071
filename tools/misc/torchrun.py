"""torchrun for dist_train.sh and dist_test.sh: silent where a process has said itself what is wrong.

torchrun ends with status 1 and a long report whatever a process died of. Statuses 2 (an error that the user can fix)
and 130 (Ctrl-C) come with a message of their own and are passed on; everything else is reported as torchrun does.
"""

from __future__ import annotations

import sys

try:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main
except ImportError as missing:
    print(f'error: PyTorch cannot be imported: {missing}. Install torch and torchvision.', file=sys.stderr)
    sys.exit(2)

EXPLAINED = (2, 130)

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in EXPLAINED:
            raise
        sys.exit(first.exitcode)
    except (KeyboardInterrupt, SignalException):
        sys.exit(130)
