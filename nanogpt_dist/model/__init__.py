"""The model: gpt.py in reading order, positions.py with positions and masks, cpu_kernels.py."""
