"""The tasks of training: a folder for each, and the table of tasks.

A folder holds the model, examples, loss, metric and pictures of its task. May import
`keras_mobilevit`, `train.config` and `train.data`.
"""
