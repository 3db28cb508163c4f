"""jepa-daam: a neural speech tokenizer for Transformers.

The import itself loads neither torch nor transformers: each name loads its module when it is first used (PEP 562), and
each of transformers' Auto classes receives ours when its own module is loaded, or now if it is loaded already. So the
command line starts fast, and `import modeling_jepa_daam` registers the classes whatever is imported next.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
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

_MODULES = {  # of the names above
    "AudioDecodeStream": "decode_stream",
    "AudioLogitsProcessor": "audio_logits_processor",
    "AudioStreamer": "audio_streamer",
    "AudioTokenStream": "streaming",
    "AudioVocabulary": "audio_vocabulary",
    "JepaAudioTokenizer": "tokenization_jepa_daam",
    "JepaDaamConfig": "configuration_jepa_daam",
    "JepaDaamEncoderModel": "modeling_jepa_daam",
    "JepaDaamFeatureExtractor": "feature_extraction_jepa_daam",
    "JepaDaamForPreTraining": "pretraining_jepa_daam",
    "JepaDaamModel": "modeling_jepa_daam",
    "TokenFileError": "token_file",
    "add_audio_tokens": "audio_vocabulary",
    "extend_embeddings": "audio_vocabulary",
    "make_untrained_checkpoint": "checkpoint",
    "pack_into_blocks": "token_blocks",
    "read_token_file": "token_file",
    "save_checkpoint": "checkpoint",
    "write_token_file": "token_file",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Registration


def _register_config(auto: ModuleType) -> None:
    from .configuration_jepa_daam import JepaDaamConfig

    auto.AutoConfig.register("jepa_daam", JepaDaamConfig)


def _register_models(auto: ModuleType) -> None:
    from .configuration_jepa_daam import JepaDaamConfig
    from .modeling_jepa_daam import JepaDaamModel
    from .pretraining_jepa_daam import JepaDaamForPreTraining

    auto.AutoModel.register(JepaDaamConfig, JepaDaamModel)
    auto.AutoModelForAudioTokenization.register(JepaDaamConfig, JepaDaamModel)
    auto.AutoModelForPreTraining.register(JepaDaamConfig, JepaDaamForPreTraining)


def _register_feature_extractor(auto: ModuleType) -> None:
    from .configuration_jepa_daam import JepaDaamConfig
    from .feature_extraction_jepa_daam import JepaDaamFeatureExtractor

    auto.AutoFeatureExtractor.register(JepaDaamConfig, JepaDaamFeatureExtractor)


def _register_tokenizer(auto: ModuleType) -> None:
    from .configuration_jepa_daam import JepaDaamConfig
    from .tokenization_jepa_daam import JepaAudioTokenizer

    auto.AutoTokenizer.register(JepaDaamConfig, slow_tokenizer_class=JepaAudioTokenizer)


_REGISTER = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    "transformers.models.auto.tokenization_auto": _register_tokenizer,
}


class _Registrar(importlib.abc.MetaPathFinder):
    """Registers our classes with each of transformers' Auto classes as soon as the module of the latter has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give for a module of Auto classes; its loader also registers."""
        if fullname not in _REGISTER:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _REGISTER[fullname](module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Registrar())
for _name in [name for name in _REGISTER if name in sys.modules]:
    _REGISTER[_name](importlib.import_module(_name))  # waits if another thread is still loading it
