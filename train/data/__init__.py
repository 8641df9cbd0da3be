"""The path from the files of a data set to the batches of a training step.

Holds one reader for each kind of source, their registry, decoding and the pipeline.
May import `keras_mobilevit`; it knows no task and no device.
"""
