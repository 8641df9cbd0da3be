"""Conversion and latency: `python tflite/convert.py --help`."""
