"""Networks that are measured side by side: the paper's table 3.

Holds their list and their conversion; `tflite/baselines.py` builds those in Keras.
May import `keras_mobilevit`, `train.cli` and the rest of `tflite`. Files outside a room
import only `suites.py`, which loads no Keras.
"""
