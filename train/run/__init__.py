"""The folder of a run: how a run starts, stops and continues.

Holds its checkpoints, records, pictures and lock. May import `keras_mobilevit`,
`train.checks`, `train.config`, `train.data`, `train.models` and `train.tasks`.
"""
