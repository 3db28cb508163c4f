"""Recipes of speech corpora: `training/assembly/speech_sources.yaml` as typed records, and the clips a recipe finds."""

import dataclasses
import hashlib
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).with_name("speech_sources.yaml")
UNKNOWN = "unknown"  # a speaker that the corpus does not name
Fields = dict[str, str]  # of one recording, by the name of a regular expression's group


@dataclass(frozen=True)
class Join:
    """A list inside a corpus whose lines add fields to its recordings.

    Args:
        file: Glob of text files, relative to the corpus. Bytes that are not UTF-8 become U+FFFD.
        line: Regular expression of a line. Its named groups are the new fields. Other lines are skipped.
        key: Template of the fields of a line.
        match: Template of the fields of a recording. A line whose key equals it belongs to the recording.
        section: Regular expression of a heading. Its named groups are fields of all lines below it.
        required: Whether a recording without a line is left out.
    """

    file: str
    line: str
    key: str
    match: str
    section: str | None = None
    required: bool = False


@dataclass(frozen=True)
class SpeechSource:
    """A corpus, and how to read it. Templates are format strings, `{group}`, of a recording's fields.

    Args:
        title: Name of the corpus.
        licence: Licence as its authors give it. A template if licences differ by recording.
        url: Origin.
        language: BCP 47; `mul` for several.
        hub_id: Dataset on the Hugging Face Hub, under its authors' or OpenSLR's name.
        corpus: Name that speaker ids share with other sources of the same corpus. Default: the source's name up to `_`.
        obtain: Shell commands that fetch it.
        files: Regular expressions of relative paths. The first that matches a path gives its fields.
        speaker: Template of the speaker's id within the corpus.
        speech_language: Template of a recording's language. Default: `language`.
        text: Template of the words that are spoken.
        joins: Lists inside the corpus with more fields.
        defaults: Fields that a recording has unless a group or a join gives them.
        text_replace: Regular expressions and their replacements, applied to texts in order.
        lowercase_text: Whether texts become lower case.
        segment_s: Longest clip (s). Longer recordings are cut at quiet places, without loss. Default: never.
    """

    title: str
    licence: str
    url: str
    language: str
    hub_id: str | None = None
    corpus: str | None = None
    obtain: str | None = None
    files: tuple[str, ...] = ()
    speaker: str = UNKNOWN
    speech_language: str | None = None
    text: str | None = None
    joins: tuple[Join, ...] = ()
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text_replace: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lowercase_text: bool = False
    segment_s: float | None = None


@dataclass(frozen=True)
class Clip:
    """A recording that a recipe found: path relative to the corpus, and metadata."""

    path: str
    speaker: str
    language: str
    text: str | None
    licence: str


@dataclass(frozen=True)
class LeftOut:
    """A recording that is not used, and why."""

    path: str
    reason: str


def load_sources(path: Path = RECIPES) -> dict[str, SpeechSource]:
    """Read recipes from a YAML file.

    Raises:
        ValueError: If a key is unknown or missing, a regular expression is wrong, or a template names no field.
    """
    return {name: _source(name, values) for name, values in yaml.safe_load(path.read_text("utf-8")).items()}


def _source(name: str, values: dict[str, Any]) -> SpeechSource:
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"recipe {name!r}: a source's name has small letters, digits and single `_` only")
    joins = tuple(_checked(Join, f"{name}: joins", join) for join in values.get("joins", ()))
    files = tuple(values.get("files", ()))
    source = _checked(SpeechSource, name, values | {"joins": joins, "files": files})
    known = set(source.defaults)
    for expression in files:
        known |= _groups(name, "files", expression)
    for join in joins:
        listed = _groups(name, "joins: line", join.line) | _groups(name, "joins: section", join.section or "")
        _check_template(name, "joins: key", join.key, listed | set(source.defaults))
        _check_template(name, "joins: match", join.match, known)
        known |= listed
    for expression in source.text_replace:
        _groups(name, "text_replace", expression)
    for key in ("speaker", "text", "licence", "speech_language"):
        _check_template(name, key, getattr(source, key) or "", known)
    return source


def _checked(kind: type, where: str, values: dict[str, Any]) -> Any:
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = values.keys() - fields.keys()
    missing = {
        key
        for key, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    } - values.keys()
    if unknown or missing:
        raise ValueError(
            f"recipe {where}: unknown keys {', '.join(sorted(unknown)) or 'none'}, "
            f"missing keys {', '.join(sorted(missing)) or 'none'}"
        )
    return kind(**values)


def _groups(name: str, key: str, expression: str) -> set[str]:
    try:
        return set(re.compile(expression).groupindex)
    except re.error as error:
        raise ValueError(f"recipe {name}: `{key}`: {expression!r} is no regular expression: {error}") from error


def _check_template(name: str, key: str, template: str, known: set[str]) -> None:
    unknown = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None} - known
    if unknown:
        raise ValueError(
            f"recipe {name}: `{key}`: {template!r} has fields {', '.join(sorted(unknown))}, "
            f"expected some of {', '.join(sorted(known)) or 'none'}"
        )


SPEECH_SOURCES = load_sources()


def corpus_of(source: str) -> str:
    """Corpus whose speaker ids a source uses: as its recipe has it, else its name up to the first `_`."""
    known = SPEECH_SOURCES.get(source)
    return (known.corpus if known else None) or source.split("_")[0]


def slug(text: str) -> str:
    """ASCII name in small letters, digits and single `_`; a hash of `text` if none of it is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_") or hashlib.sha256(text.encode()).hexdigest()[:8]


def find_clips(recipe: SpeechSource, folder: Path) -> tuple[list[Clip], list[LeftOut]]:
    """List the recordings that a recipe finds in a folder, in the order of their paths.

    Returns:
        The clips, and the recordings without a line in a required list or without a licence.

    Raises:
        ValueError: If the recipe does not say which files to use, a list is missing, or there are no recordings.
    """
    if not recipe.files:
        raise ValueError(f"{recipe.title}: the recipe has no `files`")
    if not folder.is_dir():
        raise ValueError(f"{recipe.title}: {folder} is no folder")
    expressions = [re.compile(expression) for expression in recipe.files]
    tables = [(join, _table(recipe, join, folder)) for join in recipe.joins]
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    for path in _paths(folder):
        found = next(filter(None, (expression.fullmatch(path) for expression in expressions)), None)
        if found is None:
            continue
        fields = dict(recipe.defaults) | _given(found.groupdict())
        reason = None
        for join, table in tables:
            line = table.get(_fill(join.match, fields))
            if line is not None:
                fields |= line
            elif join.required:
                reason = f"no line in {join.file}"
        licence = _fill(recipe.licence, fields)
        if reason or not licence:
            left_out.append(LeftOut(path, reason or "no licence"))
            continue
        language = _fill(recipe.speech_language or recipe.language, fields) or "und"
        clips.append(
            Clip(
                path=path,
                speaker=slug(_fill(recipe.speaker, fields) or UNKNOWN),
                language=language.replace("_", "-"),
                text=_text(recipe, _fill(recipe.text, fields) if recipe.text else None),
                licence=licence,
            )
        )
    if not clips:
        raise ValueError(f"{recipe.title}: no recordings in {folder} match {', '.join(recipe.files)}")
    return clips, left_out


def _paths(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if ".git" not in path.parts)


def _table(recipe: SpeechSource, join: Join, folder: Path) -> dict[str | None, Fields]:
    paths = sorted(folder.glob(join.file))
    if not paths:
        raise ValueError(f"{recipe.title}: {folder} has no {join.file}, which the recipe needs")
    table: dict[str | None, Fields] = {}
    for path in paths:
        heading: Fields = {}
        for line in path.read_text("utf-8", errors="replace").splitlines():
            section = re.match(join.section, line) if join.section else None
            if section:
                heading = _given(section.groupdict())
                continue
            found = re.fullmatch(join.line, line.strip())
            if found:
                fields = heading | _given(found.groupdict())
                table.setdefault(_fill(join.key, dict(recipe.defaults) | fields), fields)
    table.pop(None, None)
    return table


def _given(groups: dict[str, str | None]) -> Fields:
    return {key: value for key, value in groups.items() if value is not None}


def _fill(template: str, fields: Fields) -> str | None:
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return template.format(**fields) if all(name in fields for name in names) else None


def _text(recipe: SpeechSource, text: str | None) -> str | None:
    if text is None:
        return None
    for expression, replacement in recipe.text_replace.items():
        text = re.sub(expression, replacement, text)
    text = " ".join(text.split())
    return (text.lower() if recipe.lowercase_text else text) or None
