"""What decides a run's numbers, as one frozen value with one canonical spelling.

Everything that may change a number is in here; nothing else is. Batch size, workers, device,
backend and the folder of the results are facts of how a run was made and go into its header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sanrobust.preprocessing import Preprocessing


@dataclass(frozen=True)
class RunSpec:
    """Specification of one model under one experiment.

    Attributes:
        experiment: its name.
        model: full name of the model.
        weights: digest of the weights' values (not of the file that holds them).
        preprocessing: how images become pixels.
        data: name of the dataset.
        data_digest: digest of the image ids, labels and contents.
        images: number of images.
        settings: the experiment's own settings, JSON values only.
        precision: floating-point type of the forward and backward passes.
        record_schema: version of the form of the records.
        code: digest of the source code of a model that is the user's own; None where the code
            belongs to an installed library.
    """

    experiment: str
    model: str
    weights: str
    preprocessing: Preprocessing
    data: str
    data_digest: str
    images: int
    settings: Mapping[str, object] = field(default_factory=dict)
    precision: str = "float32"
    record_schema: int = 1
    code: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the specification as JSON values."""
        return {
            "experiment": self.experiment,
            "model": self.model,
            "weights": self.weights,
            "preprocessing": self.preprocessing.as_dict(),
            "data": self.data,
            "data_digest": self.data_digest,
            "images": self.images,
            "settings": dict(self.settings),
            "precision": self.precision,
            "record_schema": self.record_schema,
            **({} if self.code is None else {"code": self.code}),
        }

    def canonical(self) -> str:
        """Return the one spelling of this specification: JSON, sorted keys, no spaces."""
        return _canonical(self.as_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical spelling in hexadecimal."""
        return digest_of(self.as_dict())

    @property
    def run_id(self) -> str:
        """Folder name of the run: readable parts and the start of the digest."""
        parts = (self.experiment, _slug(self.model), _slug(self.data), self.digest[:12])
        return "-".join(parts)


def digest_of(spec: Mapping[str, object]) -> str:
    """Return the SHA-256 of a specification's canonical spelling in hexadecimal.

    Raises ValueError for values that are not those of JSON.
    """
    return hashlib.sha256(_canonical(spec).encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(spec: Mapping[str, object]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _slug(name: str) -> str:
    """Make any name a harmless part of a folder name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:48] or "unnamed"
