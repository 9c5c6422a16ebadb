"""What is wrong with a machine, a cluster or a run.

check.py         a finding: ok, warning or error, and what to type
"""
