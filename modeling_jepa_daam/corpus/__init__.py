"""A corpus of recordings as Parquet shards of tokens.

In order of use: `sources` lists what there is, `plan` cuts it into shards, `encoding` turns one shard's recordings into
rows, `shard` writes these, `run` does all shards in many processes and goes on where it was interrupted, `finished`
reads, verifies and decodes what came out. Nothing here is needed by a model: Hub checkpoints do not carry it.
"""

from .finished import Manifest, read_manifest, shard_paths
from .shard import read_salience, read_tokens

__all__ = ["Manifest", "read_manifest", "read_salience", "read_tokens", "shard_paths"]
