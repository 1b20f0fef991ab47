"""Checkpoints of the original implementation: reading, translating, writing."""
