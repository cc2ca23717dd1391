"""`python -m launcher.train`: the worker process under launcher train, accelerate launch, torchrun or srun."""

import os
import sys
from pathlib import Path

from launcher.train.stop import STOP

if __name__ == "__main__":
    # Read by OpenMP when torch loads it. Threads that spin long at barriers make a step several times slower on a busy
    # host; threads that never spin are slower on an idle one (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # torch builds DeepSpeed's CPU parts with the first ninja on PATH. Another version than the last time rebuilds
    # everything, which takes minutes, so it is always that of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Before anything heavy is imported: a signal during the import must end in an orderly exit.
    STOP.arm()
    from launcher.worker import main

    sys.exit(main(sys.argv[1:]))
