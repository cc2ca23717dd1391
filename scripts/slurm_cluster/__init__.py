"""A real Slurm with several nodes on one machine: what scripts/slurm-cluster is made of. Standard library only."""
