"""Before a launch: what a training takes of memory, time, network, disk, energy and money.

accelerators.py     GPUs by the names that people type: memory, peak, links, power
flops.py            floating-point operations, by component, exactly
memory_plan.py      bytes of a rank under each strategy, checkpointing and micro-batch; what fits
mfu.py              the share of the peak: given, measured, or as others published
run_speed.py        the share that a run has logged
communication.py    what ranks send each other in a step, and what of it hides behind computing
time.py             seconds of steps, evaluations and saves
cost.py             energy and money
compute_optimal.py  the best size for a budget
training_plan.py    all of it together: what `nanogpt plan` prints
expected.py         the speed that a training should have where it runs
plots.py            the memory as a picture
quantities.py       sizes, rates and counts as people type them
"""
