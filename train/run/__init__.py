"""The command line and the folder of a run: how a run starts, stops and continues.

`command` and `console` load no library; they are for every program of the repository.
May import `keras_mobilevit`, `train.config`, `train.data` and `train.tasks.task`.
"""
