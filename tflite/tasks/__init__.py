"""The tasks of conversion: what the files of each kind of network return.

`registry.py` has one row a task and loads no TensorFlow; a task's folder holds its
outputs, postprocessing, score and limits.
May import `keras_mobilevit`, `train.tasks` and `tflite.validation`.
"""
