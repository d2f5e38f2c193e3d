"""Two network namespaces as two nodes: torchrun's rendezvous between them, one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Command
from test_shards import RESNET, SMALL, require_same

NODES = ("sanrobust-a", "sanrobust-b")
ADDRESSES = ("10.203.7.1", "10.203.7.2")


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], text=True, capture_output=True)


def refusal() -> str | None:
    """Say why there can be no namespaces here."""
    if shutil.which("ip") is None:
        return "there is no ip command"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    made = ip("netns", "add", "sanrobust-probe")
    ip("netns", "del", "sanrobust-probe")
    return None if made.returncode == 0 else f"no network namespace: {made.stderr.strip()}"


@pytest.fixture
def nodes() -> Iterator[None]:
    reason = refusal()
    if reason is not None:
        pytest.skip(reason)
    try:
        for node in NODES:
            assert ip("netns", "add", node).returncode == 0
        link = ip("link", "add", "sanrobust0", "netns", NODES[0], "type", "veth", "peer", "name",
                  "sanrobust0", "netns", NODES[1])
        if link.returncode:
            pytest.skip(f"no link between namespaces: {link.stderr.strip()}")
        for node, address in zip(NODES, ADDRESSES):
            for words in (("addr", "add", f"{address}/24", "dev", "sanrobust0"),
                          ("link", "set", "sanrobust0", "up"), ("link", "set", "lo", "up")):
                assert ip("-n", node, *words).returncode == 0
        yield
    finally:
        for node in NODES:
            ip("netns", "del", node)


@pytest.mark.slow
def test_two_nodes_with_two_processes_each_make_one_run(nodes: None, command: Command,
                                                        tmp_path: Path) -> None:
    ask = ("pgd", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    running = [subprocess.Popen(
        ["ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run",
         "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "one",
         "--rdzv-endpoint", f"{ADDRESSES[0]}:29517", "--local-addr", address,
         # It is found by the name of the machine, which both have.
         "--rdzv-conf", f"is_host={int(address == ADDRESSES[0])}",
         "-m", "sanrobust", *ask, str(tmp_path / "o")],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "sanrobust0"})
        for node, address in zip(NODES, ADDRESSES)]
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert all(any(f"part {part} of 4" in each for each in said) for part in range(1, 5)), said
    require_same(tmp_path / "o", tmp_path / "whole", "pgd")
