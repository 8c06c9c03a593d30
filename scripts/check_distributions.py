"""Builds sdist and wheel, checks their contents, and tries the installed wheel outside the checkout.

It makes two environments, as after ``pip install wsram_ppl`` and ``'wsram_ppl[cli]'``. Each contains
the wheel and links to those packages of this interpreter that the wheel declares, no others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# The project; anything else (environments, runs, data) is not copied.
FOLDERS = (
    ".ci",
    ".github",
    "benchmarks",
    "docs",
    "examples",
    "experiments",
    "guides",
    "models",
    "scripts",
    "tests",
    "wsram_ppl",
)
FILES = (
    ".dockerignore",
    ".pre-commit-config.yaml",
    ".readthedocs.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "cli.py",
    "pyproject.toml",
    "setup.py",
)
LARGEST = {"sdist": 8 * 2**20, "wheel": 4 * 2**20}
WITHOUT_CLICK = "wsram needs its command-line extra: pip install 'wsram_ppl[cli]'"

PROGRAM = """\
import pyro, pyro.distributions as dist, torch
from wsram_ppl.objectives import ImportanceBound, Prior

def model(x):
    rate = pyro.param("rate", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(rate))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

ImportanceBound(num_particles=8)(model, Prior(model))(torch.tensor([0.2, 1.1])).backward()
"""
OWN_MODEL = """\
import pyro, pyro.distributions as dist, torch
from pyro.nn import PyroModule
from torch import nn

class Model(PyroModule):
    "Reads the upper or the lower half of an image."

    def __init__(self) -> None:
        super().__init__()
        self.choose, self.read = nn.Linear(256, 2), nn.Linear(128, 10)

    def forward(self, images, labels=None):
        with pyro.plate("images", len(images), dim=-1):
            half = pyro.sample("half", dist.Categorical(logits=self.choose(images.flatten(1))))
            halves = images.flatten(1).unflatten(1, (2, 128))[torch.arange(len(images)), half]
            pyro.sample("label", dist.Categorical(logits=self.read(halves)), obs=labels)
"""
TINY = (
    "training.steps=2",
    "training.batch_size=4",
    "training.eval_every=0",
    "training.log_every=1",
    "training.eval_examples=4",
    "data.canvas=16",
    "data.scale=[0.5, 0.5]",
    "objective.num_particles=2",
)


class Failed(Exception):
    """A check failed; the text says which."""


def run(command: Iterable[str | Path], folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command that must exit with ``code``, without this shell's settings for Python."""
    words = [str(word) for word in command]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True)
    if done.returncode != code:
        said = (done.stdout + done.stderr).strip()
        raise Failed(f"{' '.join(words)}: ended with {done.returncode}, not {code}:\n{said}")
    return done


def files_below(folder: Path) -> Iterator[Path]:
    """Every file, including those behind links to folders, relative to ``folder``."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name).relative_to(folder) for name in names)


def build(folder: Path) -> tuple[Path, Path, Path]:
    """A copy of the project, the sdist built from it, and the wheel built from the sdist."""
    source = folder / "source"
    for name in FOLDERS:
        # A build leaves files behind, which must not get into the next one; links stay links.
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy2(ROOT / name, source / name)
    # Not isolated: the build needs only setuptools, which the test extra installs.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, "."], source)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, sdist, wheel


def check_contents(source: Path, sdist: Path, wheel: Path) -> None:
    """The sdist must hold every file of the project, the wheel exactly those of the package."""
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as tar:
        packed = {member.name.removeprefix(f"{top}/") for member in tar if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{top}.dist-info/")}
        description = archive.read(f"{top}.dist-info/METADATA").decode()
    package = {str(path) for path in files_below(source) if path.parts[0] == "wsram_ppl"}
    built = (".egg-info", "build")
    whole = {str(path) for path in files_below(source) if not path.parts[0].endswith(built)}
    problems = [f"{name} is missing from the sdist" for name in sorted(whole - packed)]
    problems += [f"{name} is missing from the wheel" for name in sorted(package - names)]
    problems += [f"{name} does not belong in the wheel" for name in sorted(names - package)]
    problems += [
        f"an index would show a link that leads nowhere: {link}"
        for link in re.findall(r"\[[^\]]*\]\((?!https?:|#)[^)]*\)", description)
    ]
    for kind, path in (("sdist", sdist), ("wheel", wheel)):
        if path.stat().st_size > LARGEST[kind]:
            problems.append(f"the {kind} has {path.stat().st_size} bytes, more than {LARGEST[kind]}")
    if problems:
        raise Failed("\n".join(problems))
    print(f"sdist: {len(packed)} files, {sdist.stat().st_size / 2**20:.1f} MiB, the whole project")
    print(f"wheel: {len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB, only wsram_ppl")


def requirements(start: Distribution, extras: frozenset[str]) -> set[str]:
    """The distributions that one requires, with their own requirements, and so on."""
    found: set[str] = set()
    waiting, seen = [(start, extras)], set()
    while waiting:
        current, extras = waiting.pop()
        if (current.name, extras) in seen:
            continue
        seen.add((current.name, extras))
        for needed in map(Requirement, current.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": x}) for x in extras | {""}):
                found.add(needed.name)
                waiting.append((distribution(needed.name), frozenset(needed.extras)))
    return found


def install(wheel: Path, place: Path, *extras: str) -> Path:
    """Makes an environment with the wheel and its declared requirements; returns its command folder."""
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    python = place / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], place)
    (installed,) = site.glob("wsram_ppl-*.dist-info")
    for name in requirements(Distribution.at(installed), frozenset(extras)):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "bin", "__pycache__"}:
            if not top.endswith(".pth") and not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    imported = run([python, "-c", "import wsram_ppl; print(wsram_ppl.__file__)"], place).stdout
    if not Path(imported).is_relative_to(site):
        raise Failed(f"{imported} is imported instead of the installed wheel")
    return place / "bin"


def check_plain(commands: Path, folder: Path) -> None:
    """Without the extra, a Pyro program must run, and the command must say what it needs."""
    (folder / "program.py").write_text(PROGRAM)
    run([commands / "python", "program.py"], folder)
    for command in ([commands / "wsram"], [commands / "python", "-m", "wsram_ppl"]):
        done = run([*command, "list"], folder, code=2)
        if done.stderr.strip() != WITHOUT_CLICK or done.stdout:
            raise Failed(f"without click the command prints: {done.stdout}{done.stderr}")


def check_command(commands: Path, folder: Path) -> None:
    """With the extra, the command must list and train shipped models and the user's own."""
    (folder / "own_net.py").write_text(OWN_MODEL)
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "net.py").write_text(OWN_MODEL)
    python = commands / "python"
    own = ["--guide", "prior", "--set", "exploration.entropy=0"]
    calls: list[list[str | Path]] = [
        [commands / "wsram", "train", "digits", "--set", "model.hidden=4", "--set", "model.patch=2"],
        [commands / "wsram", "train", "digits", "--model", "own_net:Model", *own],
        [python, "-m", "wsram_ppl", "train", "digits", "--model", "models.net:Model", *own],
        [python, "-P", "-m", "wsram_ppl", "train", "digits", "--model", "own_net:Model", *own],
        [python, "-P", "-m", "wsram_ppl", "train", "digits", "--model", "models.net:Model", *own],
    ]
    tiny = [word for setting in TINY for word in ("--set", setting)]

    listed = {
        run([*command, "list"], folder).stdout
        for command in ([commands / "wsram"], [python, "-m", "wsram_ppl"])
    }
    if len(listed) != 1 or "glimpse-classifier" not in listed.pop():
        raise Failed("`wsram list` and `python -m wsram_ppl list` differ")
    for number, command in enumerate(calls):
        run([*command, *tiny, "--out", f"run{number}"], folder)
        if not (folder / f"run{number}" / "summary.json").is_file():
            raise Failed(f"{' '.join(map(str, command))}: left no summary")


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source, sdist, wheel = build(folder)
            check_contents(source, sdist, wheel)
            (folder / "empty").mkdir()
            check_plain(install(wheel, folder / "plain"), folder / "empty")
            check_command(install(wheel, folder / "cli", "cli"), folder / "empty")
            print("installed: objectives without the extra; wsram lists and trains, own models too")
    except Failed as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
