"""The command line of every program: flags and help, console output and tables.

Loads no TensorFlow and no Keras, so that `--help` answers at once.
May import `keras_mobilevit` only.
"""
