"""The model: gpt.py in reading order, attention.py with its positions and masks, cpu_kernels.py."""
