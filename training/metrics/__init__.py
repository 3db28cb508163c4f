"""Figures of codecs and tokens as modules for `evaluate.load`: each folder is whole without the rest of the project."""
