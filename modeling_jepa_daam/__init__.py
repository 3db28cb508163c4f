"""jepa-daam: a neural speech tokenizer for Transformers."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForPreTraining,
    AutoTokenizer,
)

from .audio_logits_processor import AudioLogitsProcessor
from .audio_streamer import AudioStreamer
from .audio_vocabulary import AudioVocabulary, add_audio_tokens, extend_embeddings
from .checkpoint import make_untrained_checkpoint, save_checkpoint
from .configuration_jepa_daam import JepaDaamConfig
from .decode_stream import AudioDecodeStream
from .feature_extraction_jepa_daam import JepaDaamFeatureExtractor
from .modeling_jepa_daam import JepaDaamEncoderModel, JepaDaamModel
from .pretraining_jepa_daam import JepaDaamForPreTraining
from .streaming import AudioTokenStream
from .token_blocks import pack_into_blocks
from .token_file import TokenFileError, read_token_file, write_token_file
from .tokenization_jepa_daam import JepaAudioTokenizer
from .version import __version__

AutoConfig.register("jepa_daam", JepaDaamConfig)
AutoModel.register(JepaDaamConfig, JepaDaamModel)
AutoModelForAudioTokenization.register(JepaDaamConfig, JepaDaamModel)
AutoModelForPreTraining.register(JepaDaamConfig, JepaDaamForPreTraining)
AutoFeatureExtractor.register(JepaDaamConfig, JepaDaamFeatureExtractor)
AutoTokenizer.register(JepaDaamConfig, slow_tokenizer_class=JepaAudioTokenizer)


__all__ = [
    "AudioDecodeStream",
    "AudioLogitsProcessor",
    "AudioStreamer",
    "AudioTokenStream",
    "AudioVocabulary",
    "JepaAudioTokenizer",
    "JepaDaamConfig",
    "JepaDaamEncoderModel",
    "JepaDaamFeatureExtractor",
    "JepaDaamForPreTraining",
    "JepaDaamModel",
    "TokenFileError",
    "__version__",
    "add_audio_tokens",
    "extend_embeddings",
    "make_untrained_checkpoint",
    "pack_into_blocks",
    "read_token_file",
    "save_checkpoint",
    "write_token_file",
]
