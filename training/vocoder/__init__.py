"""Fitting of the vocoder's fixed parts and of the linear paths beside the networks."""
