"""The devices and machines that train together, and how batches reach them.

Holds the flags of devices, strategies, clusters and distributed inputs.
May import `train.data`; it knows no task.
"""
