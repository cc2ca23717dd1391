"""Starts ranks without Slurm."""
