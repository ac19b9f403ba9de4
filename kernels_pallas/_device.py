"""What a Hopper GPU has."""

SHARED_MEMORY = 232_448
"""Bytes of shared memory of one program."""
MULTIPROCESSORS = 132
