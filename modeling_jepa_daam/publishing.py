"""A checkpoint's folder to the Hub, in one commit that appears whole or not at all."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from .files import sha256_of
from .publishing_checks import CARD_NAME, PICKLE_SUFFIXES, published_files
from .version import __version__

TAGS = ("audio", "speech", "neural-codec", "speech-tokenizer", "jepa")


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    message: str | None = None,
    replace: bool = False,
    prune: bool = False,
) -> CommitInfo:
    """Publish a folder that `check_folder` found nothing wrong with.

    Files whose content the Hub has already, from a commit or from an interrupted try, are not sent again; a file at
    which the connection broke is. Who publishes is told by `HF_TOKEN`, or by `hf auth login`.

    Args:
        folder: Of the checkpoint.
        repo_id: `owner/name` on the Hub; made if it is not there.
        private: Whether a new repository is private; as the Hub has it by default if `None`. One that is there must be
            as this says.
        revision: Branch, made from `main` if it is not there; `main` if `None`.
        create_pr: Whether to open a pull request in place of changing `main`; it may propose other weights.
        tags: Of the card, beside its own and `TAGS`.
        message: Of the commit.
        replace: Whether weights that are there may be replaced by others.
        prune: Whether files that are there, and not in the folder, are removed.

    Returns:
        The commit; the latest one, if there is nothing to change.

    Raises:
        ValueError: If other weights are there, the repository is not as `private` says, the Hub finds the card's
            metadata wrong, or `revision` stands beside `create_pr`.
        OSError: If there is no token, or a wrong one, or the connection broke; nothing is published then.
    """
    if create_pr and revision is not None:
        raise ValueError(f"`revision` must be left out with a pull request, which is made to main, got {revision!r}")
    api = HfApi(library_name="jepa-daam", library_version=__version__)
    files = [file for file in published_files(folder) if file != Path(CARD_NAME)]
    card = ModelCard.load(folder / CARD_NAME)
    with _connection_errors():
        api.whoami()  # a wrong token ends here, before anything is made
        try:
            card.validate()
        except ValueError as error:
            raise ValueError(f"`folder`: the Hub refuses the metadata of {CARD_NAME}: {error}") from error
        there = _find(api, repo_id, revision)
        if there is not None:
            if private is not None and there.private is not None and there.private != private:
                raise ValueError(f"`private`: {repo_id} is {'private' if there.private else 'public'} already")
            if not replace and not create_pr:
                _refuse_other_weights(folder, files, there)
        operations: list[CommitOperation] = [CommitOperationAdd(file.as_posix(), folder / file) for file in files]
        operations.append(CommitOperationAdd(CARD_NAME, _tagged(card, folder, tags)))
        if prune and there is not None:
            kept = {operation.path_in_repo for operation in operations} | {".gitattributes"}
            operations += [CommitOperationDelete(name) for name in _names(there) if name not in kept]
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Publish {folder.absolute().name} with jepa-daam {__version__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if there is None else there.sha,
        )


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """Make what the HTTP library raises an `OSError`, as the Hub's own errors are."""
    try:
        yield
    except (RuntimeError, HTTPError) as error:
        if isinstance(error, OSError):
            raise
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise ConnectionError(f"{error} ({type(reason).__name__}: {reason})") from error


def _find(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo | None:
    """What is on the Hub where a commit would go to; `None` if there is no such repository."""
    try:
        return api.model_info(repo_id, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        return api.model_info(repo_id, files_metadata=True)  # a new branch starts from main
    except RepositoryNotFoundError:
        return None


def _names(there: ModelInfo) -> list[str]:
    return [file.rfilename for file in there.siblings or []]


def _refuse_other_weights(folder: Path, files: list[Path], there: ModelInfo) -> None:
    suffixes = PICKLE_SUFFIXES | {".safetensors"}
    theirs = {
        file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id)
        for file in there.siblings or []
        if Path(file.rfilename).suffix in suffixes
    }
    ours = {file.as_posix(): sha256_of(folder / file) for file in files if file.suffix in suffixes}
    if theirs and theirs != ours:
        raise ValueError(
            f"`repo_id`: {there.id} holds another checkpoint: SHA-256 "
            f"{', '.join(f'{name} {digest[:12]}' for name, digest in sorted(theirs.items()))} there, "
            f"{', '.join(f'{name} {digest[:12]}' for name, digest in sorted(ours.items()))} in {folder}"
        )


def _tagged(card: ModelCard, folder: Path, tags: Sequence[str]) -> bytes:
    """The card with all tags; as it lies in the folder if it has them."""
    own = card.data.get("tags") or []
    missing = [tag for tag in dict.fromkeys((*TAGS, *tags)) if tag not in own]
    if not missing:
        return (folder / CARD_NAME).read_bytes()
    card.data["tags"] = [*own, *missing]
    return str(card).encode()
