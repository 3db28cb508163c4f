"""Where the recordings of our corpora come from, and under which licence: by the `source` of their metadata."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechSource:
    """A corpus.

    Args:
        title: Its name.
        licence: As its authors give it.
        url: Where it is from.
        language: BCP 47.
        hub_id: Of the dataset on the Hugging Face Hub, if it is there under its authors' or OpenSLR's name.
    """

    title: str
    licence: str
    url: str
    language: str
    hub_id: str | None = None


_RHASSPY = "https://github.com/rhasspy/dataset-voice"

SPEECH_SOURCES = {
    "librispeech": SpeechSource(
        "LibriSpeech", "CC BY 4.0", "https://www.openslr.org/12", "en", "openslr/librispeech_asr"
    ),
    "speechocean762": SpeechSource(
        "speechocean762",
        "free for commercial and other use (its README)",
        "https://www.openslr.org/101",
        "en",
        "mispeech/speechocean762",
    ),
    "an4": SpeechSource("CMU AN4", "BSD-like", "https://github.com/cmusphinx/an4", "en"),
    "kathleen": SpeechSource("dataset-voice-kathleen", "CC0", f"{_RHASSPY}-kathleen", "en"),
    "nathalie": SpeechSource("dataset-voice-nathalie", "CC0", f"{_RHASSPY}-nathalie", "nl"),
    "dctts": SpeechSource(
        "recordings in dc_tts", "Apache-2.0 (repository)", "https://github.com/PhilippMatthes/dc_tts", "en"
    ),
    "picovoice": SpeechSource(
        "Picovoice speech-to-intent benchmark",
        "Apache-2.0",
        "https://github.com/Picovoice/speech-to-intent-benchmark",
        "en",
    ),
    "fleursdumal": SpeechSource("Les Fleurs du mal, LibriVox", "public domain", "https://librivox.org", "fr"),
    "audiocmn": SpeechSource("audio-cmn, HSK words", "CC BY-SA", "https://github.com/hugolpz/audio-cmn", "cmn"),
    "audiocmn_syllables": SpeechSource(
        "audio-cmn, syllables", "CC BY-SA", "https://github.com/hugolpz/audio-cmn", "cmn"
    ),
    "vctk": SpeechSource("VCTK", "CC BY 4.0", "https://doi.org/10.7488/ds/2645", "en"),
    "ljspeech": SpeechSource("LJ Speech", "public domain", "https://keithito.com/LJ-Speech-Dataset", "en"),
    "asterisk8k": SpeechSource("Asterisk core sounds", "CC BY-SA 3.0", "https://www.asterisk.org", "en"),
    "visqol": SpeechSource("ViSQOL's references", "Apache-2.0", "https://github.com/google/visqol", "zxx"),
}
