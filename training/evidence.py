"""What a checkpoint's folder says of how it was made and how good it is, as JSON: made from results, without paths.

Every file that was measured with weights names their SHA-256, so that it cannot stand beside other ones.
"""

import csv
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from modeling_jepa_daam import JepaAudioTokenizer
from modeling_jepa_daam.files import replacing, sha256_of

from .report import ORIGINAL, grouped
from .tracking import read_metrics
from .transform_code import SUMMARY

WEIGHTS = "model.safetensors"
TREES = ("hub_configs", "training", "tests", "runs")  # folders that others have, too
SPEED = ("speed/batches_per_s", "speed/audio_hours_per_hour")
SIGNIFICANT_DIGITS = 6  # of logs
BLEND = "blend.json"  # what `training.blend` made a codec of
JUDGE_FILES = {  # judge -> the setting that has the digest of its weights
    "speaker": "speaker_encoder_files",
    "words": "recognizer_files",
    "voice": "voice_encoder_files",
    "moonshine": "moonshine_files",
    "phones": "phone_recognizer_files",
}
TEACHERS = {"Whisper's encoder": "teacher", "SpeechBrain's ECAPA-TDNN": "speaker_encoder"}  # keys of `losses`


def portable_path(path: str) -> str:
    """What others have of a path, too: from a folder of ours on, or its last name."""
    parts = Path(path).parts
    start = next((number for number, part in enumerate(parts) if part in TREES), len(parts) - 1)
    return "/".join(parts[start:])


def portable(text: str) -> str:
    """A text with every absolute path made `portable_path`."""
    return re.sub(r"(?<![\w.~/-])~?(?:/[^\s:,/\"']+)+", lambda match: portable_path(match[0]), text)


def portable_spec(spec: str) -> str:
    """The spec of a codec, with its path made `portable_path`."""
    return ":".join(portable_path(part) if "/" in part else part for part in spec.split(":"))


def this_machine() -> str:
    """Processor, cores, GPU if any, and versions."""
    linux = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", linux.read_text()) if linux.exists() else None
    processor = model[1] if model else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()}, torch {torch.__version__}"


def describe_run(folder: Path, machine: str, cores: int, environment: str = "", processes: int = 1) -> dict[str, Any]:
    """What a run of either stage was, from its `config.yaml` and its `metrics.jsonl`; or a computation of a transform
    code, from what it found; or a blend of two codecs.

    Time and hours of audio are those of training steps, by the run's own measure of its speed; evaluations, starts and
    steps that were done again after an interruption are not in them.

    Args:
        folder: Of the run.
        machine: What it ran on.
        cores: How many of its CPU cores.
        environment: Variables that the command needs, as in `ACCELERATE_MIXED_PRECISION=bf16`.
        processes: How many processes it had.

    Raises:
        ValueError: If the folder has no run, or the run has no step.
    """
    if (folder / BLEND).is_file():
        return describe_blend(folder, machine, cores)
    code = json.loads((folder / SUMMARY).read_text()) if (folder / SUMMARY).is_file() else None
    for name in ("config.yaml", "metrics.jsonl") if code is None else ("config.yaml",):
        if not (folder / name).is_file():
            raise ValueError(f"`runs`: no run in {folder}: it has no {name}")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    stage = 2 if "losses" in settings else 1
    settings["run"]["output"] = f"runs/{folder.name}"
    start = settings["model"]["weights"]
    if start is not None:
        path = Path(start)
        start = f"runs/{path.parent.name}/model" if path.name == "model" else portable(start)
        settings["model"]["weights"] = start
    told = {
        "stage": stage,
        "name": folder.name,
        "config": portable(yaml.safe_dump(settings, sort_keys=False)),
        "seed": settings["run"]["seed"],
        "start": start,
        "machine": machine,
        "cores": cores,
    }
    if code is not None:
        command = f"{environment} python -m training.transform_code {folder.name}.yaml".strip()
        return told | {"command": command, "code": code} | {key: code[key] for key in ("hours_of_audio", "minutes")}
    entries = read_metrics(folder / "metrics.jsonl")
    steps = [entry for entry in entries if "optim/learning_rate" in entry]
    if not steps:
        raise ValueError(f"`runs`: {folder} has not logged a step")
    seconds, hours, before = 0.0, 0.0, 0.0
    for entry in steps:
        batches = (entry["step"] - before) * settings["optim"]["accumulation_steps"]
        before = entry["step"]
        if all(key in entry for key in SPEED):
            seconds += batches / entry[SPEED[0]]
            hours += entry[SPEED[1]] * batches / entry[SPEED[0]] / 3600
    module = {1: "pretrain_encoder", 2: "train_tokenizer"}[stage]
    launcher = "python" if processes == 1 else f"torchrun --nproc_per_node {processes}"
    evaluations = [entry for entry in entries if any(key.startswith(("held_out/", "tokens/")) for key in entry)]
    return told | {
        "command": f"{environment} {launcher} -m training.{module} {folder.name}.yaml".strip(),
        "steps": max(entry["step"] for entry in entries),  # the last few may not have been logged
        "hours_of_audio": hours,
        "minutes": seconds / 60,
        "teachers": [name for name, key in TEACHERS.items() if settings.get("losses", {}).get(key) is not None],
        "loss": {key.removeprefix("loss/"): value for key, value in steps[-1].items() if key.startswith("loss/")},
        "evaluations": evaluations,
    }


def describe_blend(folder: Path, machine: str, cores: int) -> dict[str, Any]:
    """What `training.blend` wrote into a folder, as `describe_run` says it; it took no training."""
    parts = json.loads((folder / BLEND).read_text())
    words = [parts["first"], parts["second"], str(parts["share"]), f"runs/{folder.name}"]
    told = {"stage": 2, "name": folder.name, "blend": parts, "command": f"python -m training.blend {' '.join(words)}"}
    return told | {"start": parts["first"], "machine": machine, "cores": cores, "minutes": 0.0, "hours_of_audio": 0.0}


def write_log(folder: Path, path: Path) -> Path:
    """The whole `metrics.jsonl` of a run as CSV, a line an entry, numbers of `SIGNIFICANT_DIGITS`."""
    entries = read_metrics(folder / "metrics.jsonl")
    columns = ["step", *sorted({key for entry in entries for key in entry} - {"step"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.{SIGNIFICANT_DIGITS}g}" for key, value in entry.items()} for entry in entries)
    return path


def describe_evaluations(folder: Path, results: Sequence[Path], rivals: Path | None = None) -> dict[str, Any]:
    """What `training.evaluate_tokenizer` found of a checkpoint and of rivals, in one or more of its folders.

    The checkpoint bears the name of its folder; other checkpoints are left out.

    Args:
        folder: Of the checkpoint that ships.
        results: Folders with `summary.json`, and a folder a system; each of other sets.
        rivals: What this function said of earlier weights, to take other systems' figures from.

    Returns:
        `weights_sha256`, `name`, `runs` (`command`, `versions`, `judge_files` and `failures` of each folder), `systems`
        (spec by name), `extent` and `sets` (figures by set and system) and `tokens` (by set).

    Raises:
        ValueError: If a folder has no summary, did not measure these weights, or has a set that another one has; or if
            a system is another one in another folder.
    """
    weights = sha256_of(folder / WEIGHTS)
    told: dict[str, Any] = {"weights_sha256": weights, "name": folder.name}
    told |= {"runs": [], "systems": {}, "extent": {}, "sets": {}, "tokens": {}}
    for result in results:
        if not (result / "summary.json").is_file():
            raise ValueError(f"`results`: no summary.json in {result}")
        summary = json.loads((result / "summary.json").read_text())
        specs = {name: settings["system"] for name, settings in summary["settings"].items()}
        ours = [name for name, spec in specs.items() if _is_checkpoint_of(spec, weights)]
        if len(ours) != 1:
            raise ValueError(f"`results`: {result} must hold one system with the weights of {folder}, got {len(ours)}")
        names = {name: name for name, spec in specs.items() if not spec.startswith("jepa:")} | {ours[0]: folder.name}
        renamed = {names[name]: portable_spec(spec) for name, spec in specs.items() if name in names}
        renamed[folder.name] = f"jepa:{portable_path(str(folder.absolute()))}"
        for name, spec in renamed.items():
            if told["systems"].setdefault(name, spec) != spec:
                raise ValueError(f"`results`: {name} is {told['systems'][name]}, but {spec} in {result}")
        if repeated := told["sets"].keys() & summary["set"].keys():
            raise ValueError(f"`results`: {', '.join(sorted(repeated))} in {result} is in another folder, too")
        told["sets"] |= {
            each: {names[name]: figures for name, figures in systems.items() if name in names}
            for each, systems in summary["set"].items()
        }
        told["tokens"] |= {
            each: {key: value for key, value in figures.items() if not isinstance(value, list)}
            for each, figures in summary["tokens"][ours[0]].items()
        }
        told["extent"] |= _extents(result / ours[0] / "clips.jsonl")
        settings = summary["settings"][ours[0]]
        told["runs"].append(
            {
                "command": _evaluation_command(settings, renamed),
                "sets": sorted(summary["set"]),
                "versions": settings["versions"],
                "missing": settings["missing"],
                "judge_files": {judge: settings[key] for judge, key in JUDGE_FILES.items() if settings.get(key)},
                "failures": len(summary["failures"]),
            }
        )
    return told if rivals is None else with_rivals(told, json.loads(rivals.read_text()))


def with_rivals(told: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """What `describe_evaluations` says of our weights, with the figures that it had of others beside earlier weights.

    Raises:
        ValueError: If the two are of other sets, clips, versions or weights of the judges, or a clip of ours failed.
    """
    if any(run["failures"] for run in told["runs"]):
        raise ValueError("`results`: some clips failed")
    if _rounded(told["extent"]) != _rounded(earlier["extent"]):
        raise ValueError(f"`rivals`: of other clips: {earlier['extent']}, and not {told['extent']}")
    versions = [
        {json.dumps(run["versions"] | {"files": run.get("judge_files", {})}, sort_keys=True) for run in each["runs"]}
        for each in (told, earlier)
    ]
    if versions[0] != versions[1]:
        raise ValueError(f"`rivals`: judged by {versions[1]}, and not by {versions[0]}")
    others = {
        each: {name: figures for name, figures in systems.items() if name not in (earlier["name"], told["name"])}
        for each, systems in earlier["sets"].items()
    }
    return told | {
        "rivals_kept": True,
        "runs": earlier["runs"],  # whose commands measure them all
        "systems": earlier["systems"] | told["systems"],
        "sets": {each: systems | told["sets"][each] for each, systems in others.items()},
    }


def _is_checkpoint_of(spec: str, weights: str) -> bool:
    path = Path(spec.removeprefix("jepa:")) / WEIGHTS
    return spec.startswith("jepa:") and path.is_file() and sha256_of(path) == weights


def _evaluation_command(settings: dict[str, Any], systems: dict[str, str]) -> str:
    words = ["python -m training.evaluate_tokenizer RECORDINGS", "--output runs/evaluation"]
    words += [f"--system {name}={spec}" for name, spec in systems.items() if name != ORIGINAL]
    words.append(f"--judges {','.join(settings['names'])}")
    if "words" in settings["names"]:
        words.append(f"--recognizer {portable(settings['recognizer'])}")
    if "speaker" in settings["names"]:
        words.append(f"--speaker-encoder {portable(settings['speaker_encoder'])}")
    if "voice" in settings["names"]:
        words.append(f"--voice-encoder {portable(settings['voice_encoder'])}")
    if "moonshine" in settings["names"]:
        words.append(f"--moonshine {portable(settings['moonshine'])}")
    return " \\\n    ".join(words)


def _extents(path: Path) -> dict[str, Any]:
    """Of each set: clips, minutes, speakers and sources."""
    clips = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        each: {
            "clips": len(rows),
            "minutes": sum(row["seconds"] for row in rows) / 60,
            "speakers": len({row["recording"].get("speaker") for row in rows} - {None}),
            "sources": sorted({row["recording"].get("source") for row in rows} - {None}),
        }
        for each, rows in grouped(clips, "set").items()
    }


def _rounded(extents: dict[str, Any]) -> dict[str, Any]:
    # Clips were added up in the order in which they were done.
    return {each: extent | {"minutes": round(extent["minutes"], 6)} for each, extent in extents.items()}


def describe_robustness(folder: Path, result: Path) -> dict[str, Any]:
    """The table of `training.robustness`, of the checkpoint that ships.

    Raises:
        ValueError: If it was made with other weights.
    """
    measured = json.loads(result.read_text())
    weights = sha256_of(folder / WEIGHTS)
    if not _is_checkpoint_of(f"jepa:{measured['checkpoint']}", weights):
        raise ValueError(f"`results`: {result} was not made with the weights of {folder}")
    return {"weights_sha256": weights, "table": measured["table"]}


def token_digests(folder: Path, recordings: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of the ids of each recording, as 64-bit little-endian integers, by the file's name.

    They are the same for every way in which a recording comes. On another processor, where sums are rounded in another
    order, an id of a latent that lies within 1e-6 of a threshold may be another one.
    """
    tokenizer = JepaAudioTokenizer.from_pretrained(folder)
    return {
        path.name: hashlib.sha256(np.array(tokenizer(str(path))["input_ids"], dtype="<i8").tobytes()).hexdigest()
        for path in recordings
    }


def describe_speed(folder: Path, result: Path) -> dict[str, Any]:
    """What `training.codec_speed` found of the checkpoint that ships and of rivals.

    Raises:
        ValueError: If these weights are not in it.
    """
    measured = json.loads(result.read_text())
    weights = sha256_of(folder / WEIGHTS)
    rows = [
        {**row, "spec": folder.name if _is_checkpoint_of(row["spec"], weights) else portable_spec(row["spec"])}
        for row in measured.pop("rows")
    ]
    if not any(row["spec"] == folder.name for row in rows):
        raise ValueError(f"`results`: {result} was not made with the weights of {folder}")
    settings = {key: portable(value) if isinstance(value, str) else value for key, value in measured.items()}
    return {"weights_sha256": weights, **settings, "rows": rows}
