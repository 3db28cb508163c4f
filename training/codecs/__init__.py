"""Codecs to compare, ourselves among them, behind one interface: `make_codec(spec).run(samples, rate, name)`."""

from .base import Codec, Coded, Encoded, WaveformCodec
from .folder import with_lag
from .spec import SPECS, make_codec

__all__ = ["SPECS", "Codec", "Coded", "Encoded", "WaveformCodec", "make_codec", "with_lag"]
