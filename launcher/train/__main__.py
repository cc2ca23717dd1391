"""`python -m launcher.train`: the worker process under launcher train, accelerate launch, torchrun or srun."""

import os
import sys
from pathlib import Path

from launcher.train.stop import STOP

if __name__ == "__main__":
    # Read by OpenMP when torch loads it. Threads that spin long at barriers make a step several times slower on a
    # machine with other work; those that never spin are slower on an idle one (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # torch builds DeepSpeed's CPU parts with the ninja it finds. One of another version than the last time does not
    # trust what that one built, and builds it all again: minutes, at every start. So always that of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Before anything heavy is imported: a signal during the import must end in an orderly exit.
    STOP.arm()
    from launcher.worker import main

    sys.exit(main(sys.argv[1:]))
