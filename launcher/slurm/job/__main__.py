"""`python -m launcher.slurm.job STAGE ...`, what the batch scripts become."""

import sys

from launcher.slurm.job.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
