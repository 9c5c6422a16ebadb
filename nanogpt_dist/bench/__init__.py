"""How fast this machine trains, samples, reads data and writes checkpoints. `nanogpt bench` prints
what these find.
"""
