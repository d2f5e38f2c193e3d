"""An own model is known by its code, as far as it can be followed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sanrobust.errors import ModelError
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import as_classifier, create_external
from sanrobust.zoo.resolve import create_model

MODEL = '''
from torch import nn

from {package}.layers import Scale

LEVEL = 2.0


class Net(nn.Module):
    default_cfg = dict(input_size=(3, 8, 8), crop_pct=1.0)

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(3, 3), Scale()
        self.temperature = 2.0

    def forward(self, images):
        return self.scale(self.fc(images.mean((2, 3)))) * LEVEL


def make():
    from {package} import extras
    return extras.changed(Net())
'''
LAYERS = '''
from torch import nn


class Scale(nn.Module):
    def forward(self, logits):
        return logits * 2
'''
EXTRAS = '''
def changed(network):
    return network
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's in the working folder; the name is new in this process."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "model.py").write_text(MODEL.format(package=name))
    (folder / "layers.py").write_text(LAYERS)
    (folder / "extras.py").write_text(EXTRAS)
    monkeypatch.chdir(tmp_path)
    return name


def made(package: str, **settings: Callable[[str], None]) -> Classifier:
    return create_external(f"{package}.model:make", **settings)


def logits(model: Classifier) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.full((1, 3, 8, 8), 0.5))


def test_the_same_code_has_the_same_digest_in_another_process_and_folder(
        package: str, tmp_path: Path) -> None:
    own = made(package).code
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / package).rename(moved / package)
    script = (f"from sanrobust.zoo.external import create_external as c; "
              f"print(c('{package}.model:make').code)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(Path(sys.modules["sanrobust"].__file__ or "").parents[1])]), "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", script], cwd=moved, env=environment,
                             capture_output=True, text=True, check=True).stdout
    assert own is not None and printed.strip() == own and len(own) == 64


@pytest.mark.parametrize(("file", "before", "after"), [
    ("model.py", "* LEVEL", "* -LEVEL"), ("model.py", "LEVEL = 2.0", "LEVEL = 3.0"),
    ("layers.py", "logits * 2", "logits * 3"), ("extras.py", "return network", "return network "),
])
def test_a_changed_file_is_loaded_again_in_one_process_and_changes_the_digest(
        package: str, file: str, before: str, after: str) -> None:
    first, said = made(package), list[str]()
    path = Path(package, file)
    status = path.stat()
    path.write_text(path.read_text().replace(before, after))
    # Python itself would not notice: same second, and often the same size.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = made(package, say=said.append)
    assert second.code != first.code
    assert any(path.stem in line and "loaded again" in line for line in said)
    if file != "extras.py":
        assert not torch.equal(logits(first), logits(second))


def test_a_module_that_the_user_imported_and_then_changed_is_loaded_again(
        package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(f"{package}.model")
    path = Path(package, "model.py")
    path.write_text(path.read_text().replace("LEVEL = 2.0", "LEVEL = 0.0"))
    assert not logits(made(package)).any()


def test_a_file_that_nothing_imports_does_not_matter(package: str) -> None:
    before = made(package).code
    Path(package, "train.py").write_text("print('other')")
    assert made(package).code == before


def test_a_changed_file_that_no_longer_loads_is_a_sentence(package: str) -> None:
    made(package)
    path = Path(package, "layers.py")
    path.write_text(path.read_text() + "\ndef broken(:\n")
    with pytest.raises(ModelError, match=r"SyntaxError: .*\(layers.py, line 9\)"):
        made(package)


class Plain(nn.Module):
    """Attributes that decide its logits and are in no state dict."""

    default_cfg = {"input_size": (3, 8, 8)}

    def __init__(self, temperature: object = 2.0, shift: float = 0.0) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self._temperature = temperature
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.mean((2, 3))) + self.shift
        return logits


def test_the_same_network_twice_has_one_digest() -> None:
    assert as_classifier(Plain()).code == as_classifier(Plain()).code is not None


@pytest.mark.parametrize("other", [
    Plain(3.0), Plain("2.0"), Plain((2.0, 1.0)), Plain({"a": 1}), Plain(torch.ones(1)),
    Plain(shift=1.0), Plain([nn.Linear(1, 1)]), Plain(nn.functional.relu),
], ids=str)
def test_attributes_and_unsaved_buffers_are_in_the_digest(other: Plain) -> None:
    assert as_classifier(other).code != as_classifier(Plain()).code


def test_a_forward_put_on_one_network_and_a_hook_are_in_the_digest() -> None:
    codes = [as_classifier(Plain()).code]
    for change in ("forward", "hook"):
        network = Plain()
        if change == "forward":
            network.forward = lambda images: -Plain.forward(network, images)  # type: ignore
        else:
            network.register_forward_hook(lambda *each: -each[-1])
        codes.append(as_classifier(network).code)
    assert codes[0] != codes[1]
    assert codes[2] == as_classifier_of_hooked().code  # the module of both functions is this one


def as_classifier_of_hooked() -> Classifier:
    network = Plain()
    network.register_forward_hook(lambda *each: -each[-1])
    return as_classifier(network)


def test_where_something_lies_is_not_in_the_digest() -> None:
    assert as_classifier(Plain("/a/weights.pth")).code == as_classifier(
        Plain("/b/weights.pth")).code
    assert as_classifier(Plain("/a/weights.pth")).code != as_classifier(Plain("/a/w.pth")).code


NOTEBOOK = '''
import torch
from torch import nn
LEVEL = {level}
def scaled(logits):
    return logits * {factor}
class Net(nn.Module):
    default_cfg = dict(input_size=(3, 8, 8))
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
    def forward(self, images):
        return scaled(self.fc(images.mean((2, 3)))) + LEVEL
'''


def in_notebook(source: str, *, unused: str = "") -> str | None:
    """Run a cell where no file holds the source, as a notebook does, and return the digest."""
    script = (f"from sanrobust.zoo.external import as_classifier\n"
              f"exec(compile({source + unused!r}, '<cell 1>', 'exec'))\n"
              "print(as_classifier(Net()).code)")
    environment = {**os.environ, "PYTHONPATH": str(
        Path(sys.modules["sanrobust"].__file__ or "").parents[1])}
    return subprocess.run([sys.executable, "-c", script], env=environment, text=True, check=True,
                          capture_output=True).stdout.strip()


def in_module(source: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Do the same in this process, in a module that has no file."""
    module = ModuleType("notebook_cell")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "<cell 1>", "exec"), module.__dict__)
    return as_classifier(module.Net()).code


def test_a_class_of_a_notebook_has_one_digest_in_every_process() -> None:
    first = in_notebook(NOTEBOOK.format(level=1, factor=2))
    assert first and first == in_notebook(NOTEBOOK.format(level=1, factor=2),
                                          unused="\ndef other():\n    return 3\n")


def test_a_class_of_a_notebook_is_known_by_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = NOTEBOOK.format(level=1, factor=2)
    first = in_module(plain, monkeypatch)
    assert first and first == in_module(plain + "\ndef other():\n    return 3\n", monkeypatch)
    for old, new in (("LEVEL = 1", "LEVEL = 2"), ("* 2", "* 3"), ("+ LEVEL", "- LEVEL"),
                     ("images.mean", "images.sum"),
                     ("def scaled(logits)", "def scaled(logits, by=1)"),
                     ("default_cfg = dict(input_size=(3, 8, 8))",
                      "default_cfg = dict(input_size=(3, 8, 8), crop_pct=1.0)")):
        assert plain.replace(old, new) != plain
        assert in_module(plain.replace(old, new), monkeypatch) != first, new


def test_what_encloses_a_notebooks_function_is_in_its_digest(
        monkeypatch: pytest.MonkeyPatch) -> None:
    source = NOTEBOOK.format(level=1, factor=2).replace("def scaled(logits):", """
def make(factor):
    def scaled(logits):
        return logits * factor
    return scaled
scaled = make({enclosed})
def unused(logits):""")
    codes = [in_module(source.replace("{enclosed}", text), monkeypatch) for text in "121"]
    assert codes[0] == codes[2] != codes[1]


def test_a_librarys_own_code_has_no_digest(tmp_path: Path) -> None:
    assert create_model("resnet26.untrained-small").code is None
    import torchvision
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "a.pth")
    assert create_external("torchvision/squeezenet1_1", checkpoint=tmp_path / "a.pth").code is None


def test_a_classifier_computed_otherwise_keeps_its_digest() -> None:
    model = as_classifier(Plain())
    assert model.computed_by(nn.Flatten()).code == model.code


class Slotted:
    """An object whose attributes are no dictionary."""

    __slots__ = ("level",)

    def __init__(self, level: float) -> None:
        self.level = level

    def scaled(self, values: Tensor) -> Tensor:
        return values * self.level


class Holding:
    """An object with lists in a table in an attribute, and a way back to itself."""

    def __init__(self, level: float) -> None:
        self.table = {"a": [level]}
        self.me = self


def enclosing(level: float) -> object:
    return lambda values: values * level


TWO = {"as": lambda values: values, "signs": lambda values: torch.sign(values)}


@pytest.mark.parametrize(("one", "other"), [
    (Slotted(1.0), Slotted(2.0)), (Slotted(1.0).scaled, Slotted(2.0).scaled),
    (Holding(1.0), Holding(2.0)), (enclosing(1.0), enclosing(2.0)), (TWO["as"], TWO["signs"]),
    (nn.Linear(1, 1).forward, nn.Linear(1, 1).forward),
    (partial(Slotted(1.0).scaled, 3), partial(Slotted(1.0).scaled, 4)),
], ids=["slots", "methods", "deep", "closures", "one line", "methods of networks", "partial"])
def test_what_an_attribute_holds_is_in_the_digest(one: object, other: object) -> None:
    codes = [as_classifier(Plain(each)).code for each in (one, other, one)]
    assert codes[0] == codes[2] != codes[1]


FACTORY = """
import os, torch
from torch import nn
LEVEL = float(os.environ["LEVEL"])
class Net(nn.Module):
    default_cfg = dict(input_size=(3, 8, 8))
    level = {class_level}
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
    def forward(self, images):
        return self.fc(images.mean((2, 3)))
def make():
    global TABLE
    network = Net()
    TABLE = torch.full((2,), {table_level})
    if {hooked}:
        network.register_forward_pre_hook(lambda module, given: (torch.sign(given[0]),))
    return network
"""


@pytest.mark.parametrize("varied", ["LEVEL", "class_level", "table_level", "hooked"])
def test_what_a_factorys_module_holds_when_the_network_is_built_is_in_the_digest(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, varied: str) -> None:
    plain = {"LEVEL": "1", "class_level": "float(os.environ['C'])",
             "table_level": "float(os.environ['T'])", "hooked": "os.environ['H'] == '1'"}
    environment = {"LEVEL": "LEVEL", "class_level": "C", "table_level": "T", "hooked": "H"}
    (tmp_path / "own_factory.py").write_text(FACTORY.format(**plain))
    monkeypatch.chdir(tmp_path)
    codes = []
    for level in ("1", "2", "1"):
        for name in ("LEVEL", "C", "T", "H"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv(environment[varied], level)
        monkeypatch.delitem(sys.modules, "own_factory", raising=False)
        codes.append(create_model("own_factory:make").code)
    monkeypatch.delitem(sys.modules, "own_factory", raising=False)
    assert codes[0] == codes[2] != codes[1]


class Scripted(nn.Module):
    def __init__(self, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(3, 3)
        self.scales = [torch.full((3,), scale)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.mean((2, 3))) * self.scales[0]
        return logits


class Negated(Scripted):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = -self.fc(images.mean((2, 3))) * self.scales[0]
        return logits


@pytest.mark.parametrize("compiled", [
    torch.jit.script, lambda network: torch.jit.freeze(torch.jit.script(network)),
    lambda network: torch.jit.trace(network, torch.rand(2, 3, 8, 8)),
    lambda network: torch.jit.freeze(torch.jit.trace(network, torch.rand(2, 3, 8, 8)))])
def test_what_a_torchscript_network_holds_counts(
        compiled: Callable[[nn.Module], nn.Module]) -> None:
    made = [as_classifier(compiled(network.eval()), name="one")
            for network in (Scripted(), Scripted(), Scripted(2.0), Scripted(seed=1), Negated())]
    identities = [(model.code, model.weights_digest) for model in made]
    assert identities[0] == identities[1] and len(set(identities)) == 4
