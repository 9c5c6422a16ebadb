"""A CUDA device that computes on the CPU, on which the program runs as it is with --device cuda.

build.py makes a library of native/*.cpp for the installed torch, once. It is loaded before torch,
which then finds a CUDA device; device.py puts a torch.cuda over it. Tensors say cuda:N, and what
CUDA refuses is refused: operands on two devices, a generator of another device, numpy() of a
tensor on the device. Processes reduce and gather by gloo, under the name of NCCL.

record.py notes what goes between host and device, for tests to count. What the device is is said
by variables of the environment, read when torch is loaded:

    FAKECUDA=1             there is a device; needed
    FAKECUDA_RECORD        the file that the record is appended to, as JSON lines
    FAKECUDA_COUNT         devices, 8
    FAKECUDA_NAME          NVIDIA H100 80GB HBM3
    FAKECUDA_CAPABILITY    9.0
    FAKECUDA_MEMORY        bytes of each, 80e9, or 80e9,40e9; beyond: OutOfMemoryError
    FAKECUDA_COMPILE       torch.compile's backend in place of Inductor, which needs Triton: eager
    FAKECUDA_QUERIES       how often an event is asked in vain before it is reached, 1
    FAKECUDA_PATIENCE_S    a collective that takes longer has lost a rank: the device is stuck

By hand: `python -m tests.fakecuda train …`. For any command and its children: environment().
"""
