"""A run as a Slurm job. docs/architecture.md says what lies where."""
