"""Metrics that use trained models, one a file, and the targets of the shipped model."""
