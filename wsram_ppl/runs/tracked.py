"""What a run is called where it is tracked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsram_ppl.files import write_atomically

__all__ = ["TRACKED_AS", "TrackedRun", "tracked_run"]

#: The file in a run's directory with its id.
TRACKED_AS: Final = "tracked-as"


@dataclass(frozen=True)
class TrackedRun:
    """What a run is called in trackers.

    Attributes:
        id: its own, random, kept in its directory.
        project: the study that it is part of, or "wsram_ppl".
        group: its variant in the study, if any.
        name: for the reader.
    """

    id: str
    project: str
    group: str | None
    name: str


def tracked_run(path: Path) -> TrackedRun:
    """What the run in a directory is called, for good from the first call on.

    In a study's folder the directory is ``runs/VARIANT/seed-N`` or ``search/VARIANT/CANDIDATE``.
    """
    file, path = path / TRACKED_AS, path.resolve()
    if not file.exists():
        write_atomically(file, f"{uuid.uuid4().hex}\n".encode())
    known_as = file.read_text(encoding="ascii").strip()
    variant, kind, study = path.parent, path.parent.parent, path.parent.parent.parent
    if kind.name in ("runs", "search") and (study / "study.toml").is_file():
        group = variant.name if kind.name == "runs" else f"search/{variant.name}"
        return TrackedRun(known_as, study.name, group, f"{group}/{path.name}")
    return TrackedRun(known_as, "wsram_ppl", None, path.name)
