"""Several ranks.

world.py            who they are, and how they agree on what comes next
strategy.py         the model on several ranks: single, ddp, fsdp, a mesh
fsdp.py             how fsdp shards it
dealing.py          whole matrices dealt out over the ranks, and given back
compilation.py      what of it torch.compile is given
watchdog.py         which rank failed, and where each of them stands
torchrun_agent.py   torchrun itself, that names a dead rank in a line
"""
