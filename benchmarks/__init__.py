"""Benchmarks of training, and exports of other projects' networks to compare with.

They may import every package of this repository; nothing imports them.
"""
