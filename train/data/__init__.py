"""From files of any layout to the batches of a step.

Holds the readers (one a kind of source), the decoding and the pipeline.
May import `keras_mobilevit` and `train.run`; it knows no task and no device.
"""
