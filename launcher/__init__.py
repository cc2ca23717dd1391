"""launcher: fine-tune open language models on one machine or many, from checked data to a tuned model."""

__version__ = "0.1.0"
