"""What a run tells while it goes: `metrics.jsonl` beside its checkpoints, a tracker, a line on the terminal."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from modeling_jepa_daam.files import replacing

from .collapse import MIN_PREDICTION_STD
from .data import SegmentBatch
from .quality import spectrogram_figure
from .reconstruction import Clip


class RunLog:
    """Metrics of a run; only the main process writes.

    Args:
        accelerator: Of the run; its trackers are started.
        folder: Of the run.
        first_step: Steps done so far: what was logged after them, before an interruption, is dropped.
        max_steps: Steps of the whole run.
        settings: Flat settings for the tracker.
        live: Whether to show a live line, where there is a terminal; else a line is printed for each entry.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: str | os.PathLike,
        first_step: int,
        max_steps: int,
        settings: dict[str, Any],
        live: bool = True,
    ):
        self._accelerator = accelerator
        self.path = Path(folder) / "metrics.jsonl"
        self._latest: dict[str, float] = {}
        self._console = Console(stderr=True, soft_wrap=True)
        if accelerator.is_main_process:
            drop_after(self.path, first_step)
        options = {"tensorboard": {"purge_step": first_step + 1}}
        accelerator.init_trackers("jepa-daam", config=settings, init_kwargs=options)
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            expand=True,
            console=self._console,
            disable=not (live and accelerator.is_main_process and self._console.is_terminal),
        )
        self._task = self._progress.add_task("step", total=max_steps, completed=first_step, figures="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._progress.update(self._task, completed=step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log one step's metrics, if there are any."""
        if metrics and self._accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._accelerator.log(metrics, step=step)
            self._latest |= metrics
            figures = describe(self._latest if not self._progress.disable else metrics)
            self._progress.update(self._task, figures=figures)
            if self._progress.disable:
                self._console.print(f"step {step}: {figures}", markup=False, highlight=False)

    def unreadable(self, batch: SegmentBatch) -> None:
        """Name the recordings that could not be read, if any."""
        for name, reason in batch.unreadable:
            self.say(f"warning: unreadable, left out: {name}: {reason}")

    def watch(self, step: int, prediction_std: float) -> None:
        """Warn of a collapse (section 2.5.2)."""
        if prediction_std < MIN_PREDICTION_STD and self._accelerator.is_main_process:
            self.say(
                f"warning: step {step}: the standard deviation of the predictions is {prediction_std:.2g}, "
                f"below {MIN_PREDICTION_STD}: the model may have collapsed"
            )

    def watch_digits(self, step: int, figures: dict[str, float]) -> None:
        """Warn of digits of the quantizer that carry nothing."""
        dead = int(figures["tokens/digits_never_change"])
        if dead > 0:
            self.say(f"warning: step {step}: {dead} digits of the quantizer never change over all evaluated clips")

    def reconstructions(
        self, step: int, clips: Sequence[Clip], reconstructions: Sequence[np.ndarray], sampling_rate: int
    ) -> None:
        """Write clips as sound, and beside their originals as spectrograms: into the run's folder and the tracker.

        Args:
            step: Steps done.
            clips: The originals.
            reconstructions: Of at least these clips, each `(samples,)`.
            sampling_rate: Of both (Hz).
        """
        from matplotlib.image import imsave

        folder = self.path.parent / "reconstructions" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (clip, samples) in enumerate(zip(clips, reconstructions, strict=False)):
            picture = spectrogram_figure(clip.samples, samples, sampling_rate, f"{clip.name}, step {step}")
            soundfile.write(folder / f"{number:02d}.flac", samples, sampling_rate)
            soundfile.write(folder / f"{number:02d}-original.flac", clip.samples, sampling_rate)
            imsave(folder / f"{number:02d}.png", picture)
            for tracker in self._accelerator.trackers:
                if tracker.name == "tensorboard":
                    writer = tracker.tracker
                    writer.add_audio(f"reconstruction/{number:02d}", samples[None], step, sampling_rate)
                    writer.add_image(f"spectrogram/{number:02d}", picture, step, dataformats="HWC")
                elif tracker.name == "wandb":
                    import wandb

                    sound = wandb.Audio(samples, sample_rate=sampling_rate)
                    named = {f"reconstruction/{number:02d}": sound, f"spectrogram/{number:02d}": wandb.Image(picture)}
                    tracker.tracker.log(named, step=step)

    def say(self, text: str) -> None:
        """A message, from whichever process."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was. The trackers close with `accelerator.end_training()`."""
        self._progress.stop()


class SpeedMeter:
    """Speed since the last reading, and the share of time that was spent waiting for data.

    Args:
        sampling_rate: Of the batches (Hz).
        num_processes: That train at the same time, each at about this speed.
    """

    def __init__(self, sampling_rate: int, num_processes: int):
        self._samples_per_hour = 3600 * sampling_rate
        self._num_processes = num_processes
        self.restart()

    def restart(self) -> None:
        """Leave out what was measured since the last reading: an evaluation, say."""
        self._start, self._waited, self._samples, self._batches = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add(self, batch: SegmentBatch) -> None:
        """A batch is done."""
        self._samples += int(batch.lengths.sum())
        self._batches += 1

    def read(self) -> dict[str, float]:
        """Batches a second, audio-hours an hour over all processes, share of time waiting for data."""
        elapsed = time.perf_counter() - self._start
        hours = self._samples / self._samples_per_hour * self._num_processes
        figures = {
            "speed/batches_per_s": self._batches / elapsed,
            "speed/audio_hours_per_hour": 3600 * hours / elapsed,
            "speed/data_wait_share": self._waited / elapsed,
        }
        self.restart()
        return figures


def describe(metrics: dict[str, float]) -> str:
    """The few figures that a person wants to see at once."""
    shown = {
        "loss/predict": "loss {:.4f}",
        "loss/total": "loss {:.3f}",
        "loss/bits": "loss {:.2f} bits a token",
        "validation/bits": "validation {:.2f} bits a token",
        "held_out/mel_distance": "held-out mel distance {:.3f}",
        "held_out/mel_distance_of_constant": "of a constant {:.3f}",
        "seen/mel_distance": "mel distance of clips trained on {:.3f}",
        "held_out/spectrogram_distance": "held-out spectrogram distance {:.3f}",
        "held_out/stoi": "STOI {:.3f}",
        "seen/stoi": "STOI {:.3f}",
        "tokens/digit_entropy_bits": "{:.2f} bits a digit",
        "held_out/loss/predict": "held-out loss {:.4f}",
        "std/predictions": "std {:.3f}",
        "rank/targets": "rank {:.1f}",
        "speed/audio_hours_per_hour": "{:.0f} h/h",
        "speed/data_wait_share": "data wait {:.1%}",
    }
    return ", ".join(form.format(metrics[key]) for key, form in shown.items() if key in metrics)


def drop_after(path: Path, step: int) -> None:
    """Drop what a metrics file says of later steps, and a line that was half written."""
    if not path.exists():
        return
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in read_metrics(path) if entry["step"] <= step))


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The entries of a `metrics.jsonl`, but for a last line that was half written."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line end is not whole
