"""The folder of a run: what is in it, and how a run stops and continues.

Holds checkpoints, records, curves, the lock and the console.
May import `keras_mobilevit` only.
"""
