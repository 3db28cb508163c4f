"""Every codec of a comparison: as long and as late as the clip, and honest about its bits."""

import math
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from pystoi import stoi

from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.framing import num_frames
from modeling_jepa_daam.token_file import HEADER_BYTES, bytes_per_frame
from training.codecs import make_codec, with_lag
from training.codecs.programs import ogg_packet_sizes
from training.metrics.codec_quality.alignment import remove_lag

from .conftest import SPEECH, noise

RATE = 24000
PROGRAMS = {"codec2": "c2enc", "opus": "opusenc", "speex": "speexenc", "mp3": "lame"}
LYRA = os.environ.get("LYRA_V2_FOLDER", "")  # of its three tflite files


def real(spec: str, *more):
    """A spec (and what goes with it) whose program may not be here."""
    program = PROGRAMS[spec.partition(":")[0]]
    return pytest.param(
        spec, *more, marks=pytest.mark.skipif(not shutil.which(program), reason=f"no program {program}")
    )


def lyra(bps: int, *more):
    missing = pytest.mark.skipif(not LYRA, reason="LYRA_V2_FOLDER names no folder")
    return pytest.param(f"lyra:{bps}:{LYRA}", *more, marks=missing)


def best_lag(original: np.ndarray, decoded: np.ndarray) -> int:
    """Lag of the greatest cross-correlation within 50 ms, in samples."""
    lags = range(-RATE // 20, RATE // 20)
    return max(lags, key=lambda lag: float(original @ remove_lag(decoded, lag, len(original))))


@pytest.mark.parametrize(
    "spec", [real("codec2:700C"), real("codec2:2400"), real("opus:6"), real("speex:6"), real("mp3:8"), lyra(3200)]
)
@pytest.mark.parametrize(("samples", "sampling_rate"), [(24001, 24000), (7777, 16000), (44099, 44100), (2401, 24000)])
def test_a_reconstruction_is_as_long_as_the_clip(speech, spec, samples, sampling_rate):
    coded = make_codec(spec).run(speech[:samples], sampling_rate)
    assert coded.samples.shape == (samples,)
    assert coded.samples.dtype == np.float32
    assert 0 < coded.bits <= coded.file_bits


@pytest.mark.parametrize(
    "spec", [real("opus:6"), real("opus:24"), real("speex:8"), real("mp3:8"), real("mp3:32"), lyra(9200)]
)
def test_a_reconstruction_lies_on_the_clip(speech, spec):
    assert abs(best_lag(speech, make_codec(spec).run(speech, RATE).samples)) <= RATE // 1000


@pytest.mark.parametrize(
    "spec", [real(f"codec2:{mode}") for mode in ("700C", "1200", "1300", "1400", "1600", "2400", "3200")]
)
def test_codec2_is_aligned_where_speech_is_clearest(speech, spec):
    """It keeps no phases, so that waveforms do not correlate: STOI says where it lies."""
    decoded = make_codec(spec).run(speech, RATE).samples
    scores = {lag: stoi(speech, remove_lag(decoded, lag, len(speech)), RATE) for lag in range(-720, 721, 120)}
    assert abs(max(scores, key=scores.get)) <= 120  # 5 ms


@pytest.mark.parametrize(
    ("spec", "frame_s", "frame_bytes"), [real("codec2:700C", 0.04, 4), real("codec2:2400", 0.02, 6)]
)
def test_codec2_counts_whole_frames_of_whole_bytes(speech, spec, frame_s, frame_bytes):
    codec = make_codec(spec)
    coded = codec.run(speech, RATE)
    frames = -(-(round(len(speech) / 3) + codec.delay) // round(8000 * frame_s))
    assert coded.bits == coded.file_bits == 8 * frame_bytes * frames


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        real("opus:6", 4000, 6000),
        real("opus:12", 9000, 13000),
        real("speex:6", 5500, 6500),
        real("mp3:8", 8000, 9000),
        lyra(3200, 3200, 3300),
        lyra(6000, 6000, 6200),
    ],
)
def test_the_bits_are_about_what_was_asked_for(speech, spec, low, high):
    assert low <= make_codec(spec).run(speech, RATE).bits / (len(speech) / RATE) <= high


@pytest.mark.parametrize("spec", [real("opus:6"), real("speex:6")])
def test_ogg_pages_and_headers_are_no_payload(speech, spec):
    codec = make_codec(spec)
    encoded = codec.encode(soxr.resample(speech, RATE, codec.sampling_rate))
    packets = ogg_packet_sizes(encoded.data)
    assert encoded.bits == 8 * sum(packets[2:])
    assert 300 < len(encoded.data) - sum(packets[2:]) < 2000
    assert encoded.data.count(b"OpusHead" if "opus" in spec else b"Speex   ") == 1


def ogg_page(lacing: list[int], body: bytes) -> bytes:
    return b"OggS" + bytes(22) + bytes([len(lacing), *lacing]) + body


def test_ogg_packets_are_put_together_over_segments_and_pages():
    first = ogg_page([19], bytes(19)) + ogg_page([255, 0, 10, 255], bytes(520))
    data = first + ogg_page([255, 3, 0, 7], bytes(265))
    assert ogg_packet_sizes(data) == [19, 255, 10, 513, 0, 7]
    for broken in (first, data[:-1], b"RIFF" + data, data + b"Ogg"):
        with pytest.raises(ValueError, match="Ogg"):
            ogg_packet_sizes(broken)


def test_our_bits_are_those_of_the_token_file(speech, tiny_folder, tiny_model):
    codec, config = make_codec(f"jepa:{tiny_folder}"), tiny_model.config
    clip = speech[:24001]
    coded = codec.run(clip, RATE)
    frames = num_frames(len(clip), config.hop_length)
    assert coded.bits == 8 * bytes_per_frame(config) * frames
    assert coded.file_bits == coded.bits + 8 * HEADER_BYTES
    assert coded.tokens.shape == (frames, config.tokens_per_frame)
    np.testing.assert_array_equal(coded.tokens.flatten(), codec.tokenizer(clip, RATE)["input_ids"])
    np.testing.assert_array_equal(coded.samples, codec.tokenizer.decode_audio(coded.tokens.flatten())[: len(clip)])
    assert codec.nominal_bps == config.bitrate_bps
    assert len(codec.run(speech[:7777], 16000).samples) == 7777


def test_the_papers_frames_take_256_bits(speech, nano_folder):
    coded = make_codec(f"jepa:{nano_folder}").run(speech[:24001], RATE)
    assert coded.bits == 256 * len(coded.tokens) == 256 * 3


def test_the_original_is_itself(speech):
    coded = make_codec("original").run(speech, RATE)
    np.testing.assert_array_equal(coded.samples, speech)
    assert coded.samples is not speech
    assert coded.bits is None


def test_noise_is_as_loud_as_the_clip_white_and_drawn_by_its_name(speech):
    coded = make_codec("noise").run(speech, RATE, "read/one")
    noisy = coded.samples
    assert (coded.bits, noisy.dtype, noisy.shape) == (None, np.float32, speech.shape)
    assert math.sqrt(np.square(noisy, dtype=np.float64).mean()) == pytest.approx(speech.std(), rel=1e-3)
    powers = [band.mean() for band in np.array_split(np.abs(np.fft.rfft(noisy)) ** 2, 8)]
    assert max(powers) < 1.1 * min(powers)
    assert abs(np.corrcoef(noisy, speech)[0, 1]) < 0.02
    np.testing.assert_array_equal(make_codec("noise").run(speech, RATE, "read/one").samples, noisy)
    for name in ("read/two", None):
        assert abs(np.corrcoef(make_codec("noise").run(speech, RATE, name).samples, noisy)[0, 1]) < 0.02
    silence = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(make_codec("noise").run(silence, RATE).samples, silence)


def test_a_shifted_clip_comes_so_many_samples_late(speech):
    late = make_codec("shifted:240").run(speech, RATE)
    np.testing.assert_array_equal(late.samples, np.concatenate([np.zeros(240, np.float32), speech[:-240]]))
    assert (late.bits, late.samples.dtype) == (None, np.float32)
    early = make_codec("shifted:-7").run(speech, RATE).samples
    np.testing.assert_array_equal(early, np.concatenate([speech[7:], np.zeros(7, np.float32)]))
    assert not make_codec("shifted:240").run(speech[:100], RATE).samples.any()


@pytest.mark.parametrize("spec", [real("codec2:700C"), real("opus:6"), real("speex:6"), real("mp3:8"), lyra(3200)])
def test_a_clip_gives_the_same_whatever_came_before(speech, spec):
    codec = make_codec(spec)
    first = codec.run(speech[:RATE], RATE)
    codec.run(noise(RATE), RATE)
    for same in (codec, make_codec(spec), pickle.loads(pickle.dumps(codec))):
        again = same.run(speech[:RATE], RATE)
        np.testing.assert_array_equal(again.samples, first.samples)
        assert again.bits == first.bits


@pytest.mark.skipif(not shutil.which("opusenc"), reason="no program opusenc")
def test_no_files_are_left_behind(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    codec = make_codec("opus:6")
    codec.run(speech[:RATE], RATE)
    with pytest.raises(ValueError, match="`opusdec .*` failed with status"):
        codec.decode(b"no Opus")
    assert list(tmp_path.iterdir()) == []


def write(path: Path, samples: np.ndarray, sampling_rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sampling_rate, subtype="PCM_24" if path.suffix == ".flac" else "FLOAT")


@pytest.fixture
def late_folder(speech, tmp_path) -> Path:
    """Two clips, 10 ms late, at two rates, one of them in a subfolder."""
    late = np.pad(speech, (240, 0))[:-999]
    write(tmp_path / "late" / "deep" / "one.flac", late, RATE)
    write(tmp_path / "late" / "two.wav", soxr.resample(late, RATE, 16000), 16000)
    write(tmp_path / "late" / "notes.txt.flac", late, RATE)
    return tmp_path / "late"


def test_a_folder_gives_each_clip_its_file_less_one_lag(speech, late_folder):
    spec = with_lag(f"folder:{late_folder}:640", [(name, SPEECH) for name in ("absent", "one", "two")])
    assert spec == f"folder:{late_folder}:640:10ms"
    assert with_lag(spec, []) == spec
    codec = make_codec(spec)
    assert (codec.name, codec.nominal_bps) == ("late", 640)
    for name, tolerance in (("one", 1e-6), ("two", 0.02)):
        coded = codec.run(speech, RATE, name)
        assert coded.samples.shape == speech.shape
        np.testing.assert_allclose(coded.samples[500:-2000], speech[500:-2000], atol=tolerance)
        assert coded.bits == pytest.approx(640 * len(speech) / RATE)
    assert make_codec(f"folder:{late_folder}:10ms").run(speech, RATE, "one").bits is None


def test_an_early_folder_is_found_too(speech, tmp_path):
    write(tmp_path / "a:b" / "one.wav", speech[300:], RATE)
    spec = with_lag(f"folder:{tmp_path}/a:b", [("one", SPEECH)])
    assert spec.endswith("a:b:-12.5ms")
    np.testing.assert_allclose(make_codec(spec).run(speech, RATE, "one").samples[300:], speech[300:])


@pytest.mark.parametrize(
    ("files", "clip", "expected"),
    [
        (["a/001.wav", "b/001.wav"], "b/001", "b/001.wav"),
        (["model/a/001.wav", "model/b/001.wav"], "b/001", "model/b/001.wav"),
        (["a/001.wav", "b/001.wav"], "eval/b/001", "b/001.wav"),
        (["001.wav", "a/001.wav"], "001", "001.wav"),
        (["001.wav"], "a/001", "001.wav"),
        (["read.1/001.5.wav"], "read.1/001.5", "read.1/001.5.wav"),
        (["a/001.wav"], "b/001", None),
        (["a/001.wav", "b/002.wav"], "b/001", None),
        (["001.wav", "a/001.wav"], "b/001", None),
        (["a/001.wav"], "aa/001", None),
        (["a/001.wav", "b/001.wav"], "001", "2 files: a/001.wav, b/001.wav"),
        (["a/001.wav", "a/001.flac"], "a/001", "2 files: a/001.flac, a/001.wav"),
        (["x/a/001.wav", "y/a/001.wav"], "a/001", "2 files: x/a/001.wav, y/a/001.wav"),
    ],
)
def test_a_clip_never_gets_the_file_of_another(tmp_path, files, clip, expected):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    folder = make_codec(f"folder:{tmp_path}:0ms")
    if expected in files:
        assert folder.find(clip) == tmp_path / expected
    else:
        with pytest.raises(ValueError, match=f"`name`: {expected or 'no file'} for clip '{clip}'"):
            folder.find(clip)


def test_the_first_files_that_can_be_read_decide_and_no_other_is_opened(speech, tmp_path, monkeypatch):
    for name in "abcdefg":
        write(tmp_path / "late" / f"{name}.wav", np.pad(speech, (240, 0)), RATE)
    (tmp_path / "late" / "b.wav").write_bytes(b"RIFF, they say")
    (tmp_path / "broken.flac").write_bytes(b"fLaC, they say")
    originals = {name: SPEECH for name in "gfedcbax"} | {"c": tmp_path / "broken.flac", "d": tmp_path / "absent.flac"}
    opened = []

    def load(path: Path, *rates) -> np.ndarray:
        opened.append(path.name)
        return load_audio(path, *rates)

    monkeypatch.setattr("training.codecs.folder.load_audio", load)
    assert with_lag(f"folder:{tmp_path}/late", originals.items()).endswith("late:10ms")
    kept = [name for name in opened if name.endswith(".wav")]
    assert kept == ["a.wav", "b.wav", "e.wav", "f.wav"]  # not c and d, whose originals came first, nor g, the fourth


def test_specs_of_other_codecs_have_no_lag():
    assert with_lag("original", iter(())) == "original"


def test_what_a_folder_does_not_have_is_said(speech, late_folder, tmp_path):
    with pytest.raises(ValueError, match=r"lag .* not known"):
        make_codec(f"folder:{late_folder}").run(speech, RATE, "one")
    codec = make_codec(f"folder:{late_folder}:0ms")
    for name in ("three", None):
        with pytest.raises(ValueError, match=f"no file for clip {name!r}"):
            codec.run(speech, RATE, name)
    write(late_folder / "deeper" / "one.wav", speech, RATE)
    with pytest.raises(ValueError, match=r"2 files: deep/one.flac, deeper/one.wav for clip 'one'"):
        make_codec(f"folder:{late_folder}:0ms").run(speech, RATE, "one")
    with pytest.raises(ValueError, match="none of them .*no file for clip 'three'"):
        with_lag(f"folder:{late_folder}", [("three", SPEECH)])
    with pytest.raises(ValueError, match="none of them"):
        with_lag(f"folder:{late_folder}", [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.aif, .*\.flac"):
        make_codec(f"folder:{tmp_path}/empty")
    with pytest.raises(ValueError, match="no folder"):
        make_codec(f"folder:{tmp_path}/absent")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vorbis:6", "must be one of original, noise, shifted:SAMPLES, jepa:FOLDER"),
        ("opus", "must be one of"),
        ("noise:1", "must be one of"),
        ("shifted:2.5", "shifted:SAMPLES, a whole number, got shifted:2.5"),
        ("opus:", "must be one of"),
        ("opus:5", "Opus needs a rate of 6 to 256 kbit/s, got '5'"),
        ("opus:six", "got 'six'"),
        ("speex:2", "Speex needs a rate of 3.95"),
        ("mp3:9", "MP3 has rates"),
        ("codec2:700", "Codec2 has modes"),
        ("lyra:3200", "lyra:BPS:FOLDER"),
        ("lyra:3000:x", r"rates of \[3200, 6000, 9200\] bit/s, got 3000"),
        ("lyra:3200:absent", "there is no soundstream_encoder.tflite, quantizer.tflite, lyragan.tflite"),
        ("jepa:absent", "no checkpoint"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_codec(spec)


@pytest.mark.parametrize(
    ("spec", "package"), [("codec2:1200", "codec2"), ("opus:6", "opus-tools"), ("speex:6", "speex"), ("mp3:8", "lame")]
)
def test_a_missing_program_names_its_package(spec, package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"apt-get install {package}"):
        make_codec(spec)


def test_without_its_package_lyra_names_it(tmp_path, monkeypatch):
    for name in ("soundstream_encoder", "quantizer", "lyragan"):
        (tmp_path / f"{name}.tflite").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install ai-edge-litert"):
        make_codec(f"lyra:3200:{tmp_path}")


@pytest.mark.parametrize(
    "samples",
    [np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.zeros(9), [0.0], np.full(9, np.nan, np.float32)],
)
def test_what_is_no_clip_is_refused(samples):
    with pytest.raises(ValueError, match="`samples` must be"):
        make_codec("original").run(samples, RATE)
