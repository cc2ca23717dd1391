"""Talks to Slurm from anywhere: commands, answers, names of jobs."""
