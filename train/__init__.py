"""Training: `python train/main.py --help`."""
