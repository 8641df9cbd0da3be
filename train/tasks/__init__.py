"""What can be trained: one folder with one value for each task, and the table of tasks.

A folder holds the model, examples, loss, metric and pictures of its task. May import
`keras_mobilevit`, `train.config` and `train.data`.
"""
