"""Print what reading checkpoints of the largest network takes, as a table in Markdown (Linux).

    python tests/measure_checkpoints.py            # with the sanrobust that Python imports
    PYTHONPATH=OTHER python tests/measure_checkpoints.py   # with that of the folder OTHER
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME, REPEATS = "san19-pair", 1


def forms() -> dict[str, Callable[[dict[str, Any]], object]]:
    """Return how trainers save a state, by a word."""
    import torch

    return {
        "zip": lambda state: state,
        "older": lambda state: state,
        "safetensors": lambda state: state,
        "float64": lambda state: {name: value.double() if value.is_floating_point() else value
                                  for name, value in state.items()},
        "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
        "with optimizer": lambda state: {"state_dict": state, "optimizer": [
            {name: torch.zeros_like(value) for name, value in state.items()} for _ in range(2)]},
        "with average": lambda state: {"state_dict": state, "state_dict_ema": {
            name: value.clone() for name, value in state.items()}},
    }


def write(folder: Path) -> dict[str, Path]:
    """Write the network's initial values in every form."""
    import torch
    from safetensors.torch import save_file

    from sanrobust.zoo.resolve import create_model

    state = create_model(f"{NAME}.untrained").network.state_dict()
    files = {}
    for word, form in forms().items():
        files[word] = folder / word.replace(" ", "-")
        if word == "safetensors":
            save_file(form(state), files[word])
        else:
            torch.save(form(state), files[word], _use_new_zipfile_serialization=word != "older")
    return files


def measure(path: str) -> None:
    """Print the network in MB, what reading it takes above an idle process, and CPU seconds."""
    from sanrobust.zoo.resolve import create_model

    create_model("san10-pair.untrained-small")
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    begun = time.process_time()
    found = create_model(NAME, checkpoint=Path(path))
    seconds = time.process_time() - begun
    need = sum(value.nbytes for value in found.network.state_dict().values())
    print(need / 1e6, _status("VmHWM") - before, seconds)


def main() -> None:
    """Measure every form several times and print the least time and the largest peak."""
    print("| form | file, MB | network, MB | peak, MB | of file + 2 networks | CPU seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for word, path in write(Path(folder)).items():
            found = [[float(each) for each in subprocess.run(
                [sys.executable, __file__, str(path)], check=True, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout.split()]
                for _ in range(REPEATS)]
            size, need = path.stat().st_size / 1e6, found[0][0]
            peak, seconds = max(each[1] for each in found), min(each[2] for each in found)
            print(f"| {word} | {size:.0f} | {need:.0f} | {peak:.0f} | "
                  f"{peak / (size + 2 * need):.2f} | {seconds:.2f} |", flush=True)


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    measure(sys.argv[1]) if sys.argv[1:] else main()
