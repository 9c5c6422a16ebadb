"""Several runs of one kind: a sweep, and the scaling law that a ladder of sizes follows.

sweep.py         FILE.toml → runs, each with its settings and a name of what differs; how they stand
changes.py       what may change under a run that has begun
sizes.py         a preset at other widths: depth, heads, parameters
results.py       loss of each run over tokens, seconds and FLOPs, and at equal ones
scaling_law.py   L(N, D) = E + A/N^α + B/D^β, fitted, with intervals
ladder.py        which runs a ladder has
reading.py       what their losses say of larger ones
plots.py         both as a picture
"""
