"""The shipped programs have one import path, and a second name for the same objects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import guides
import models
import wsram_ppl.guides
import wsram_ppl.models
from wsram_ppl.objectives import Prior

ROOT = Path(__file__).resolve().parents[2]


def test_both_names_hand_on_the_same_objects() -> None:
    for short, package in ((models, wsram_ppl.models), (guides, wsram_ppl.guides)):
        assert short.__all__ == package.__all__
        for name in package.__all__:
            assert getattr(short, name) is getattr(package, name)
    assert guides.Prior is Prior


@pytest.mark.parametrize("module", ["models.classifier", "guides.classifier"])
def test_no_module_is_loaded_a_second_time_under_another_name(module: str) -> None:
    """Its classes would be others, which an inference network would refuse."""
    with pytest.raises(ModuleNotFoundError, match=module):
        __import__(module)


def test_programs_need_no_pictures() -> None:
    code = "import sys, wsram_ppl.models, wsram_ppl.guides; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
