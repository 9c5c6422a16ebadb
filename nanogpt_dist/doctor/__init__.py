"""What is wrong with a machine, a cluster or a run.

check.py         a finding: ok, warning or error, and what to type
run_checks.py    what is wrong with a run, over
run_facts.py     what its files say,
run_standing.py  who is in it, how it ended, its attempts,
run_resume.py    checkpoints, disk, data, from where it would go on,
run_losses.py    spikes, flat, NaN, overfitting,
run_speed.py     throughput over time, slow ranks, stalls,
run_settings.py  rates, batch, warm-up, epochs, val split
machine.py       what is looked at
check_machine.py the machine, theme by theme; the themes:
installation.py    Python, packages, which of several is imported, a compiler
variables.py       environment variables: left over, for debugging
limits.py          ulimit, umask
cores.py           cores, and threads on them
neighbours.py      who else takes the cores
cgroup.py          what a container or a job may use
network.py         host name, interfaces, port, proxies, certificates
scheduler.py       Slurm, Kubernetes
hub_access.py      the hub's address, token and cache
clock.py           the clock
disk.py            folder of runs, temporary files, shared memory
gpus.py            torch's build, memory, devices and their speed
ranks.py         several ranks as one report: differences, all-reduce
scrub.py         a text without secrets
bundle.py        all of it as one .tar.gz
"""
