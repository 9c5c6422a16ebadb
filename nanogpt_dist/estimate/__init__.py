"""Before a launch: what a training takes of memory, time, network, disk, energy and money.

accelerators.py  GPUs by the names that people type: memory, peak, links, power
flops.py         floating-point operations, by component, exactly
memory_plan.py   bytes of a rank under each strategy, checkpointing and micro-batch; what fits
"""
