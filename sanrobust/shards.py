"""Which part of a run a process measures, and from where it knows.

A run is cut into blocks of images; part i of n measures the blocks whose number leaves i - 1 when
it is divided by n. Nobody talks to anybody: the parts meet in the folder of the results alone.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from sanrobust.errors import UsageError, shown_value

MOST_SHARDS = 100_000
_TYPED = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_WHOLE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Shard:
    """One part of several.

    Attributes:
        index: from 0.
        count: how many parts there are; 1: no others.
        source: from where it is known; empty where nothing said so.
        local: which of its machine's processes this is, from 0; None when unknown.
        launch: what all parts of one launch have in common and no other launch has; None where
            each part was started by hand.
    """

    index: int = 0
    count: int = 1
    source: str = ""
    local: int | None = None
    launch: str | None = None

    def owns(self, block: int) -> bool:
        """Return whether a block is one of its own."""
        return block % self.count == self.index

    @property
    def told(self) -> str:
        """Which part it is and from where it knows, for people."""
        part = f"part {self.index + 1} of {self.count}, by {self.source}"
        is_typed = self.source.startswith("--shard")
        return part if is_typed else f"{part}; --shard 1/1 measures everything"

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def find_shard(typed: str | None, environment: Mapping[str, str]) -> Shard:
    """Return the part that was typed as ``i/n``, i from 1, or that a launcher's environment names.

    In the environment of torchrun it is ``RANK`` of ``WORLD_SIZE``, in that of srun
    ``SLURM_PROCID`` of ``SLURM_NTASKS``, and in a SLURM array the task's number; in an array of
    several tasks each, both. What was typed goes before all of them, torchrun before SLURM.
    Raises UsageError for what is no part of a whole.
    """
    local = _number(environment, "LOCAL_RANK")
    if local is None:
        local = _number(environment, "SLURM_LOCALID")
    if typed is not None:
        return _typed(typed, local)
    return _from_torchrun(environment, local) or _from_slurm(environment, local) or Shard()


def _typed(text: str, local: int | None) -> Shard:
    found = _TYPED.fullmatch(text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count <= MOST_SHARDS:
        raise UsageError(f"--shard must be i/n with i from 1 to n, and n at most {MOST_SHARDS}",
                         seen=f"it is {shown_value(text)}",
                         hint="type --shard 1/4 for the first of four parts, 4/4 for the last")
    return Shard(index - 1, count, f"--shard {text}", local)


def _from_torchrun(environment: Mapping[str, str], local: int | None) -> Shard | None:
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    index, count = _part(environment, "RANK", "WORLD_SIZE")
    return Shard(index, count, "RANK and WORLD_SIZE, as torchrun sets them", local,
                 _torchrun_launch(environment))


def _torchrun_launch(environment: Mapping[str, str]) -> str | None:
    """Return the id that torchrun was given, else the process that started those of one machine."""
    named = environment.get("TORCHELASTIC_RUN_ID", "none")
    if named != "none":
        return f"torchrun {named}"
    nodes = environment.get("GROUP_WORLD_SIZE", "1")
    return f"torchrun {socket.gethostname()} {os.getppid()}" if nodes == "1" else None


def _from_slurm(environment: Mapping[str, str], local: int | None) -> Shard | None:
    """Return the part of a step's task, of an array's, or of a step's within an array."""
    task, tasks, array, arrays = 0, 1, 0, 1
    said = []
    if "SLURM_ARRAY_TASK_ID" in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
        array, arrays = _array_part(environment)
        said += ["SLURM_ARRAY_TASK_ID"] if arrays > 1 else []
    if _is_step(environment):
        task, tasks = _part(environment, "SLURM_PROCID", "SLURM_NTASKS")
        said += ["SLURM_PROCID"] if tasks > 1 else []
    if not said:
        return None
    job = environment.get("SLURM_ARRAY_JOB_ID" if arrays > 1 else "SLURM_JOB_ID")
    step = environment.get("SLURM_STEP_ID", "") if tasks > 1 and arrays == 1 else ""
    launch = None if job is None else f"SLURM {job} {step}".rstrip()
    return Shard(array * tasks + task, arrays * tasks, f"{' and '.join(said)} of SLURM", local,
                 launch)


def _is_step(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process.

    A batch script is task 0 of as many as were asked for, though it alone runs; it has no step.
    """
    of_a_job_alone = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    return not of_a_job_alone and {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys()


def _array_part(environment: Mapping[str, str]) -> tuple[int, int]:
    number = _number(environment, "SLURM_ARRAY_TASK_ID") or 0
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT") or 1
    first = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    index, rest = divmod(number - first, step)
    if count > 1 and (rest or not 0 <= index < count):
        raise UsageError("the tasks of a SLURM array must be numbered without gaps to be parts",
                         seen=f"this is task {number} of {count} that begin with {first}",
                         hint=f"type sbatch --array=0-{count - 1}, or say with --shard i/n which "
                              "part this task is")
    return (index, count) if count > 1 else (0, 1)


def _part(environment: Mapping[str, str], index: str, count: str) -> tuple[int, int]:
    number, parts = _number(environment, index), _number(environment, count)
    assert number is not None and parts is not None
    if not number < parts <= MOST_SHARDS:
        raise UsageError(f"{index} must be below {count}, and that at most {MOST_SHARDS}",
                         seen=f"they are {number} and {parts}",
                         hint="unset both, or say with --shard i/n which part this process is")
    return number, parts


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not _WHOLE.fullmatch(text):
        raise UsageError(f"{name} of the environment must be a whole number",
                         seen=f"it is {shown_value(text)}",
                         hint=f"unset {name}, or set it as the launcher does")
    return int(text)
