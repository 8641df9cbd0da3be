"""Segmentation as a task of conversion."""
