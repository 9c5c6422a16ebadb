"""`nanogpt bench`: how fast this machine trains, samples, reads data and writes checkpoints."""
