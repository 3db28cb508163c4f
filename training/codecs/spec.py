"""A codec from a short text, so that a worker process, a command line and a table row can name the same one."""

from collections.abc import Callable

from .base import Codec
from .folder import Folder
from .jepa import Jepa
from .lyra import Lyra
from .programs import Codec2, Mp3, Opus, Speex
from .sanity import Noise, Original, Shifted

SPECS = {
    "original": "the clip itself",
    "noise": "white noise, as loud as the clip",
    "shifted:SAMPLES": "the clip, so many samples late",
    "jepa:FOLDER": "a checkpoint of ours",
    "codec2:MODE": "Codec2 at 700C, 1200, 1300, 1400, 1600, 2400 or 3200 bit/s, 8 kHz",
    "opus:KBPS": "Opus at a target of so many kbit/s, 6 to 256",
    "speex:KBPS": "wide-band Speex at so many kbit/s or less, from 3.95",
    "mp3:KBPS": "LAME at so many kbit/s: 8, 16, 24, 32, 40, 48, 56 or 64",
    "lyra:BPS:FOLDER": "Lyra v2 at 3200, 6000 or 9200 bit/s; the folder of its three tflite files",
    "folder:PATH[:BPS][:LAGms]": "reconstructions in files of the clips' names; their bit rate and lag (`with_lag`)",
}
WITHOUT_SETTINGS: dict[str, Callable[[], Codec]] = {"original": Original, "noise": Noise}
MAKERS: dict[str, Callable[[str], Codec]] = {
    "shifted": Shifted,
    "jepa": Jepa,
    "codec2": Codec2,
    "opus": Opus,
    "speex": Speex,
    "mp3": Mp3,
    "lyra": Lyra.from_spec,
    "folder": Folder.from_spec,
}


def make_codec(spec: str) -> Codec:
    """Make the codec of a spec: one of `SPECS`, such as `"opus:6"`. The same spec makes the same codec everywhere.

    Raises:
        ValueError: If there is no such spec, or it needs a program, package or file that is not there.
    """
    if spec in WITHOUT_SETTINGS:
        return WITHOUT_SETTINGS[spec]()
    kind, _, rest = spec.partition(":")
    if kind not in MAKERS or not rest:
        raise ValueError(f"`spec` must be one of {', '.join(SPECS)}, got {spec!r}")
    return MAKERS[kind](rest)
