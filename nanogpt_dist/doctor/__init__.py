"""What is wrong with a machine, a cluster or a run.

check.py         a finding: ok, warning or error, and what to type
run_checks.py    what is wrong with a run, over
run_facts.py     what its files say,
run_standing.py  who is in it, how it ended, its attempts,
run_resume.py    checkpoints, disk, data, from where it would go on,
run_losses.py    spikes, flat, NaN, overfitting,
run_speed.py     throughput over time, slow ranks, stalls,
run_settings.py  rates, batch, warm-up, epochs, val split
"""
