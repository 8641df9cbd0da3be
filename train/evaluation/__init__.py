"""One evaluation for every task and every kind of model file.

Serves the validation of a training run and `--mode=eval`. May import
`keras_mobilevit`, `train.data`, `train.distribution`, `train.tasks` and `train.step`.
"""
