"""In a notebook: README's examples run, progress shows, and nothing of the process is changed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import SOURCES

NEEDED = ("nbclient", "nbformat", "ipykernel")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

STATE = """
def _state():
    import logging, os, signal, sys, threading, warnings
    import matplotlib, torch
    return {
        "signals": [signal.getsignal(each) for each in
                    (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)],
        "path": list(sys.path), "folder": os.getcwd(), "hooks": (sys.excepthook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr), "backend": matplotlib.get_backend(),
        "environment": {name: value for name, value in os.environ.items()
                        if name != "CUBLAS_WORKSPACE_CONFIG"},
        "logging": (logging.root.level, list(logging.root.handlers),
                    list(logging.getLogger("PIL").handlers)),
        "filters": list(warnings.filters), "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "seed": hash(tuple(torch.random.get_rng_state().tolist())),
        "dtype": torch.get_default_dtype(),
        "exact": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                  torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
                  torch.get_float32_matmul_precision(),
                  torch.are_deterministic_algorithms_enabled()),
    }

import sanrobust, sanrobust.api  # what a library sets when it is first loaded is its own
import torchvision, timm, pandas, pyarrow.parquet, sklearn.datasets, matplotlib.figure
_before = _state()
"""
CHECK = """
_after = _state()
for _name in _before:
    assert _before[_name] == _after[_name], (_name, _before[_name], _after[_name])
"""
THREAD = """
import threading
_seen = []
_thread = threading.Thread(target=lambda: _seen.append(
    sanrobust.rotate("resnet26.digits", data=sanrobust.DataConfig(num_samples=8), out="thread")))
_thread.start()
_thread.join()
assert len(_seen[0].table) == 1
"""
SMALL = """
_few = sanrobust.DataConfig(num_samples=8)
_made = sanrobust.pgd("resnet26.digits", data=_few, budgets=[(8, 2, 2)], out="few",
                      save_adversarial=True)
assert _made.adversarial[:].shape == (8, 3, 32, 32)
_made
"""


def executed(cells: list[str], place: Path) -> Any:
    """Run cells in a kernel of this Python, in ``place``; return the notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    os.environ["PYTHONPATH"] = os.pathsep.join([SOURCES, *filter(None, sys.path)])
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="this Python", language="python")
    client = NotebookClient(book, km=manager, timeout=1500, startup_timeout=300,
                            resources={"metadata": {"path": str(place)}})
    client.execute()
    return book


def shown(book: Any) -> str:
    """Return all text below the cells."""
    outputs = [output for cell in book.cells for output in cell.outputs]
    return "\n".join([output.get("text", "") for output in outputs]
                     + [output.get("data", {}).get("text/plain", "") for output in outputs])


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))


def test_a_notebook_shows_progress_and_stays_as_it_was(tmp_path: Path) -> None:
    book = executed([STATE, SMALL, THREAD, CHECK], tmp_path)
    text = shown(book)
    assert "pgd resnet26.digits: 8/8 images" in text
    assert "rotate resnet26.digits: 8/8 images" in text
    html = [output["data"]["text/html"] for cell in book.cells for output in cell.outputs
            if output.output_type == "execute_result"]
    assert len(html) == 1 and "success" in html[0]


@pytest.mark.slow
def test_the_python_examples_of_the_readme_run_in_a_notebook(tmp_path: Path) -> None:
    readme = (Path(SOURCES) / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    draws = "_before.pop('seed')"  # the examples draw images themselves
    book = executed([STATE, draws, *blocks, CHECK], tmp_path)
    assert "images" in shown(book)
