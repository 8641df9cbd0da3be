"""Which devices and machines train together, and how batches reach them.

Holds strategies, clusters and distributed inputs.
May import `train.data` and `train.run`; it knows no task.
"""
