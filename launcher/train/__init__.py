"""The training loop and what each rank runs."""
