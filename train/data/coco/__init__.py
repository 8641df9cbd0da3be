"""Data sets in the layout of COCO: images with boxes."""
