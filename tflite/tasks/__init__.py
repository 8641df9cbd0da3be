"""The tasks of conversion: the outputs of the files of each kind of network.

`registry.py` has one row a task and loads no TensorFlow; a task's folder holds its
outputs, postprocessing, score and limits.
May import `keras_mobilevit`, `train.tasks` and `tflite.validation`.
"""
