"""benchmarks/gpu.py says where there is no GPU, and its way is whole: the same on a CPU, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.slow


def told(*given):
    return subprocess.run([sys.executable, SCRIPT, *given], capture_output=True, text=True)


def test_without_a_gpu_it_says_so(tmp_path):
    hidden = {"env": {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}}
    made = subprocess.run([sys.executable, SCRIPT, "--results", tmp_path], capture_output=True, text=True, **hidden)
    assert made.returncode == 2 and made.stdout.startswith("This machine has no GPU") and not list(tmp_path.iterdir())


def test_the_whole_way_on_a_cpu(tmp_path):
    made = told("--device", "cpu", "--tiny", "--results", tmp_path)
    assert made.returncode == 0, made.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    names = [one["stage"] for one in found["stages"]]
    assert names == 2 * ["encode", "seeds", "refine", "encode + seeds + refine", "CRF"]
    assert found["training"]["steps_per_second"] > 0 and set(found["same"].values()) == {1.0}
    assert "| training, 2 crops of 32 |" in made.stdout and "pixels as on the CPU | 100.000 %" in made.stdout
    assert torch.__version__ == found["torch"]
