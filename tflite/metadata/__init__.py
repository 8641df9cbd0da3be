"""What a file says of its model: for people, for MediaPipe and for ML Kit.

`origin.py` has the author, the license and the preparation of images; `schema.py` the
tables of TFLite's public schema; `describe.py` fills them; `attach.py` writes them.
May import `keras_mobilevit`, `train.cli` and `tflite.tasks`.
"""
