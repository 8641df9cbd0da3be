"""One evaluation for every task and every form of a model.

Serves the validation of a training run and `--mode=eval`.
May import `keras_mobilevit`, `train.data`, `train.distribution` and `train.run`.
"""
