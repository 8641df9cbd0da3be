"""Data sets in the layout of PASCAL VOC: images with boxes, and images with masks."""
