"""Parts of `training.assemble_speech`: recipes, sound files, fingerprints and shards of speech corpora."""
