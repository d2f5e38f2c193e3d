"""The same few images in every form in which ``--data`` and Python take them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

IDS = tuple(f"c{label}/{number}.png" for number, label in enumerate((0, 1, 2, 3, 4, 5, 1, 4)))
LABELS = [int(each[1]) for each in IDS]


def shown(label: int, number: int) -> Image.Image:
    """Return an image of a class of `grey_models` that no other image equals."""
    values = np.full((40, 40, 3), 10 + 15 * label, np.uint8)
    values[number, :, number % 3] += 40
    values[:, 2 * number, 0] ^= 3
    return Image.fromarray(values)


IMAGES = [shown(label, number) for number, label in enumerate(LABELS)]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def folder(place: Path) -> Path:
    for name, image in zip(IDS, IMAGES):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(png(image))
    return place


def pack(path: Path, members: Mapping[str, bytes | None] | Sequence[tuple[str, bytes | None]],
         **kind: Any) -> Path:
    """Write a tar archive of these members; one without content is a link that leads away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **kind) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return path


def samples(names: Sequence[str] = IDS, *, as_json: bool = False) -> dict[str, bytes | None]:
    """Return the members of a WebDataset archive of some of the images."""
    members: dict[str, bytes | None] = {}
    for name in names:
        number = IDS.index(name)
        key = name.removesuffix(".png")
        members[name] = png(IMAGES[number])
        members[f"{key}.json" if as_json else f"{key}.cls"] = (
            json.dumps({"label": LABELS[number], "a": "b"}).encode() if as_json
            else f"{LABELS[number]}\n".encode())
    return members


def levels() -> np.ndarray:
    return np.stack([np.asarray(image) for image in IMAGES])


def floats() -> torch.Tensor:
    return torch.from_numpy(levels()).permute(0, 3, 1, 2).float() / 255


class Items(Dataset[Any]):
    """A dataset of torch, of what ``form`` makes of an image."""

    def __init__(self, form: Callable[[Image.Image], object] = lambda image: image,
                 label: Callable[[int], object] = int) -> None:
        self.form, self.label = form, label

    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, place: int) -> tuple[object, object]:
        if place >= len(IDS):
            raise IndexError(place)
        return self.form(IMAGES[place]), self.label(LABELS[place])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(image, label) for image, label in zip(IMAGES, LABELS)])


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def npz(place: Path) -> str:
    np.savez(place / "a.npz", images=levels(), labels=np.array(LABELS), ids=np.array(IDS))
    return str(place / "a.npz")


def packed_npz(place: Path) -> str:
    np.savez_compressed(place / "b.npz", x_test=levels().transpose(0, 3, 1, 2),
                        y_test=np.array(LABELS, np.uint8))
    return str(place / "b.npz")


def pt(place: Path) -> str:
    torch.save({"images": floats(), "labels": torch.tensor(LABELS), "ids": list(IDS)},
               place / "a.pt")
    return str(place / "a.pt")


def pair_pt(place: Path) -> str:
    torch.save((torch.from_numpy(levels()), torch.tensor(LABELS)), place / "b.pt")
    return str(place / "b.pt")


def safetensors(place: Path) -> str:
    from safetensors.torch import save_file
    save_file({"images": torch.from_numpy(levels()), "labels": torch.tensor(LABELS)},
              place / "a.safetensors")
    return str(place / "a.safetensors")


def tar(place: Path) -> str:
    return str(pack(place / "val.tar", samples()))


def shards(place: Path) -> str:
    for number, part in enumerate((IDS[:3], IDS[3:5], IDS[5:])):
        pack(place / "s" / f"val-{number:03d}.tar", samples(part, as_json=number == 1))
    return str(place / "s" / "val-{000..002}.tar")


def shard_folder(place: Path) -> str:
    return str(Path(shards(place)).parent)


def loader(place: Path) -> Any:
    return DataLoader(Items(as_tensor), batch_size=3, shuffle=True)


SOURCES: Mapping[str, Callable[[Path], Any]] = {
    "tar": tar,
    "shards": shards,
    "shard-glob": lambda place: shards(place).replace("{000..002}", "*"),
    "shard-folder": shard_folder,
    "npz": npz,
    "packed-npz": packed_npz,
    "pt": pt,
    "pair-pt": pair_pt,
    "safetensors": safetensors,
    "arrays": lambda _: (levels(), LABELS),
    "float-tensors": lambda _: (floats(), torch.tensor(LABELS), IDS),
    "level-tensors": lambda _: (torch.from_numpy(levels()), torch.tensor(LABELS)),
    "items": lambda _: Items(),
    "array-items": lambda _: Items(np.asarray, torch.tensor),
    "loader": loader,
    "stream": lambda _: Stream(),
    "stream-loader": lambda _: DataLoader(Stream(), batch_size=4),
}
NAMED = ("tar", "shards", "shard-glob", "shard-folder", "npz", "pt", "float-tensors")
"""Those that carry the names of the images."""
