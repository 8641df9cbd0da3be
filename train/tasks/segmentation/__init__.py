"""Segmentation with DeepLabv3: the class of every pixel of an image."""
