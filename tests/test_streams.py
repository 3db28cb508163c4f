"""Streams of samples and of ids: what is refused, or fails, leaves no trace."""

import numpy as np
import pytest

from modeling_jepa_daam import JepaDaamModel

from .conftest import noise

WIDTH = 3  # tokens a frame of the tiny model


@pytest.fixture
def ids(tiny_tokenizer) -> list[int]:
    return tiny_tokenizer(noise(60 * 20), 24000)["input_ids"]


@pytest.mark.parametrize("bad", [[10**6], [0, -1], [0, 0, 20000], [0.5], ["<|audio_0|>"]])
@pytest.mark.parametrize("taken", [0, 1, WIDTH, 4])
def test_a_decode_stream_goes_on_after_ids_that_it_refused(tiny_tokenizer, ids, bad, taken):
    stream, undisturbed = tiny_tokenizer.decode_stream(), tiny_tokenizer.decode_stream()
    pieces = [stream.push(ids[:taken])]
    with pytest.raises((ValueError, TypeError)):
        stream.push(bad)
    assert stream.num_frames == taken // WIDTH
    pieces += [stream.push(ids[taken:]), stream.close()]
    np.testing.assert_array_equal(
        np.concatenate(pieces),
        np.concatenate([undisturbed.push(ids[:taken]), undisturbed.push(ids[taken:]), undisturbed.close()]),
    )


def test_an_id_that_is_wrong_at_its_place_is_refused_at_once(tiny_tokenizer, ids):
    """The last token of a frame holds fewer dimensions, and so fewer values."""
    largest = [int(column.max()) for column in tiny_tokenizer.frames(ids).T]
    stream = tiny_tokenizer.decode_stream()
    stream.push([largest[0], largest[1]])
    with pytest.raises(ValueError, match="`input_ids` must lie in"):
        stream.push([16383])
    assert stream.num_frames == 0
    stream.push([largest[2]])
    assert stream.num_frames == 1


@pytest.mark.parametrize("rate", [24000, 16000])
def test_a_token_stream_goes_on_after_samples_that_it_refused(tiny_tokenizer, rate):
    samples = noise(2000)
    stream, undisturbed = tiny_tokenizer.stream(rate), tiny_tokenizer.stream(rate)
    ids = stream.push(samples[:700])
    for bad in ([np.nan], [0.0, 17.0], np.zeros((2, 3, 4)), ["a"]):
        with pytest.raises((ValueError, TypeError)):
            stream.push(bad)
    ids += stream.push(samples[700:]) + stream.close()
    assert ids == undisturbed.push(samples) + undisturbed.close()
    assert stream.num_samples == undisturbed.num_samples


def test_a_token_stream_loses_nothing_when_the_model_fails(tiny_tokenizer, monkeypatch):
    """As where an accelerator is out of memory for a moment."""
    samples = noise(2000)
    stream, undisturbed = tiny_tokenizer.stream(24000), tiny_tokenizer.stream(24000)

    def fail(self, waveforms):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(JepaDaamModel, "waveforms_to_ids", fail)
        with pytest.raises(MemoryError):
            stream.push(samples[:1500])
    ids = stream.push(samples[1500:]) + stream.close()
    assert ids == undisturbed.push(samples) + undisturbed.close()
    assert stream.num_samples == 2000
