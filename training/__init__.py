"""Training of the jepa-daam models: `python -m training.pretrain_encoder`. Imports the package, never the reverse."""
