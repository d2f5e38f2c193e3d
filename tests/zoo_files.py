"""Checkpoints, a small web server and a network ban for the tests of the zoo."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sanrobust.zoo.build import build, parameter_shapes
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.forms import small_config

SMALL = small_config("san10-pair", 10)

# These tests do many small things; handing each to several threads costs more than it saves.
torch.set_num_threads(1)


def trained(architecture: Architecture = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict as training would leave it: distinct values, running statistics too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture)
        network.train()
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    value.add_(torch.rand_like(value) * 0.01)
    return {name: value.clone() for name, value in network.state_dict().items()}


def official_layout(architecture: Architecture, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint as the authors' training script does and return its plain state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = {name: torch.randn(shape) if shape else torch.tensor(7)
                 for name, shape in parameter_shapes(architecture).items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 100, "state_dict": {f"module.{key}": value
                                             for key, value in state.items()},
                "optimizer": optimizer, "scheduler": {"last_epoch": 100}, "top1_val": 0.75,
                "top5_val": 0.92}, path, _use_new_zipfile_serialization=False)
    return state


def ban_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection to another machine, and every look-up of its name, a failure."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not _is_local(str(address[0])):
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)  # type: ignore[arg-type]

    def guarded_look_up(host: object, *args: object, **settings: object) -> object:
        if not _is_local(str(host)):
            raise OSError(f"a test tried to look up {host}")
        return look_up(host, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Request(BaseHTTPRequestHandler):
    """A request whose answer is one function's business."""

    answer: Callable[[Request], None]

    def do_GET(self) -> None:
        type(self).answer(self)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the server's log out of the tests' output."""

    def send(self, status: int, body: bytes, *, sent: int | None = None,
             **headers: str) -> None:
        """Answer with ``body``, cut to its first ``sent`` bytes as if the line had broken."""
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = True


@contextmanager
def serving(answer: Callable[[Request], None]) -> Iterator[str]:
    """Serve ``answer`` on this machine and yield the address of a file there."""
    handler = type("Handler", (Request,), {"answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.pth"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
