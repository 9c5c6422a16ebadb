"""Command lines and supervision of distributed runs. Nothing here imports torch."""
