"""What only a GPU can settle: `make gpu`, or `pytest -m gpu`. Each test is one capability.

What was measured goes into one JSON file (conftest.py). Without a GPU all are skipped. On the fake
GPU of tests/fakecuda the same tests run in a small size; what a device that computes on the CPU
cannot show is left out by name (Measured.on_hardware), and the file lists it.
"""
