"""The command line: quick help, one sentence for every bad input, files where they are promised."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import sanrobust
from conftest import SCRIPT, Command
from made_runs import SPEC, make_old_run, make_run
from sanrobust import allocator
from sanrobust.errors import OutputError
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import imagenet_config, small_config

SMALL = "resnet26.untrained-small"
LIGHT = "-c", ("import sys, sanrobust.cli; "
               "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'rich'} & set(sys.modules); "
               "sys.exit(f'{heavy} were imported' if heavy else 0)")


@pytest.mark.parametrize("words", [(), ("rotate",), ("pgd",), ("table",), ("train",), ("bench",),
                                   ("info",), ("zoo",), ("zoo", "list"), ("zoo", "show"),
                                   ("zoo", "add"), ("zoo", "verify"), ("check",)], ids=" ".join)
def test_every_command_has_help(command: Command, words: tuple[str, ...]) -> None:
    result = command(*words, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:") and len(result.output.splitlines()) > 4


def test_reading_the_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *LIGHT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_help_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # as after an installation
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([SCRIPT, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Of the processor, because test machines are busy: 0.1 s on an idle machine.
    assert min(seconds) < 0.4


def image(path: Path, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (200, 30, 90)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flat folder with one image, and beside it label files of all sorts."""
    image(tmp_path / "flat" / "a.png")
    for name, text in (("good", "file,class_index\na.png,3\n"),
                       ("large", "file,class_index\na.png,10\n"),
                       ("negative", "file,class_index\na.png,-1\n"),
                       ("columns", "name,label\na.png,3\n"),
                       ("other", "file,class_index\nb.png,3\n"),
                       ("outside", "file,class_index\n../flat/a.png,3\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "html.pth").write_text("<!DOCTYPE html><html>quota exceeded</html>")
    torch.save(build(small_config("resnet38", 10)).state_dict(), tmp_path / "resnet38.pth")
    return tmp_path


BAD_INPUT = [
    ("mistyped model", ("rotate", "-m", "san01-pair"), 2, "did you mean san10-pair?"),
    ("mistyped tag", ("rotate", "-m", "san10-pair.in2k"), 2, "did you mean san10-pair.in1k?"),
    ("mistyped dataset", ("rotate", "--data", "digit"), 2, "did you mean digits?"),
    ("missing folder", ("rotate", "--data", "no/such"), 3, "there is no folder or file no/such"),
    ("empty folder", ("rotate", "--data", "empty"), 3, "empty"),
    ("flat without labels", ("rotate", "--data", "flat"), 3, "--labels"),
    ("labels missing", ("rotate", "--data", "flat", "--labels", "no.csv"), 3, "no.csv"),
    ("labels columns", ("rotate", "--data", "flat", "--labels", "columns.csv"), 3, "class_index"),
    ("label of another file", ("rotate", "--data", "flat", "--labels", "other.csv"), 3, "b.png"),
    ("label outside", ("rotate", "--data", "flat", "--labels", "outside.csv"), 3, "inside"),
    ("negative label", ("rotate", "--data", "flat", "--labels", "negative.csv"), 3, "-1"),
    ("label too large", ("rotate", "-m", SMALL, "--data", "flat", "--labels", "large.csv"), 3,
     "a.png of flat has label 10"),
    ("another number of classes", ("rotate", "-m", SMALL, "-m", "san10-pair.in1k"), 3,
     "must have its 1000 classes"),
    ("second model mistyped", ("rotate", "-m", SMALL, "-m", "resnet26.untrained-smal"), 2,
     "did you mean resnet26.untrained-small?"),
    ("eps in the wrong unit", ("pgd", "--eps", "0.031", "--step", "2", "--iters", "4"), 2,
     "type 8 or 8/255"),
    ("eps alone", ("pgd", "--eps", "8"), 2, "--step and --iters are missing"),
    ("negative step", ("pgd", "--eps", "8", "--step", "-1", "--iters", "4"), 2, "--step"),
    ("mistyped rule", ("pgd", "--targets", "randon"), 2, "did you mean random?"),
    ("missing targets", ("pgd", "--targets", "file:no.csv"), 3, "no.csv"),
    ("target out of range", ("pgd", "-m", SMALL, "--targets", "fixed:10"), 2, "from 0 to 9"),
    ("restarts without start", ("pgd", "--restarts", "3"), 2, "--random-start"),
    ("option without value", ("pgd", "--attack", "torchattacks:PGD", "-A", "eps"), 2,
     "key=value"),
    ("mistyped device", ("rotate", "--device", "gpu"), 2, "--device cpu"),
    ("absent device", ("rotate", "--device", "cuda:9"), 7, "--device cpu"),
    ("mistyped backend", ("rotate", "--backend", "referense"), 2, "did you mean reference?"),
    ("batch of none", ("rotate", "-b", "0"), 2, "auto or a whole number from 1"),
    ("mean of two", ("rotate", "--mean", "0.5,0.5"), 2, "three numbers"),
    ("crop too large", ("rotate", "-m", SMALL, "--crop-pct", "-1.5"), 2, "--crop-pct must be"),
    ("too many samples", ("rotate", "-m", SMALL, "--num-samples", "452"), 2, "451"),
    ("checkpoint without model", ("rotate", "--checkpoint", "resnet38.pth"), 2, "--model"),
    ("checkpoint missing", ("rotate", "-m", SMALL, "--checkpoint", "no.pth"), 4, "no.pth"),
    ("another depth", ("rotate", "-m", SMALL, "--checkpoint", "resnet38.pth"), 4,
     "resnet38"),
    ("HTML instead of weights", ("rotate", "-m", SMALL, "--checkpoint", "html.pth"), 4,
     "is a web page"),
    ("image too small", ("rotate", "-m", "san10-pair.untrained-small", "--img-size", "8"), 4,
     "--img-size"),
    ("unpublished weights", ("rotate", "-m", "resnet26.in1k", "--data", "flat", "--labels",
                             "good.csv"), 4, "torchvision/resnet50"),
    ("no results", ("table", "--out", "empty"), 6, "holds none"),
    ("output with a name too long", ("rotate", "-m", SMALL, "--num-samples", "2", "--out",
                                     "n" * 300), 6, "must be writable"),
    ("name with a line end", ("rotate", "--data", "flat", "--data-name", "a\nb"), 2, "printable"),
    ("negative steps", ("pgd", "--attack", "torchattacks:PGD", "-A", "steps=-2"), 2,
     "must not be negative"),
    ("output below a file", ("rotate", "-m", SMALL, "--out", "html.pth/out"), 6,
     "must be writable"),
    ("store name", ("zoo", "add", "../evil.x", "resnet38.pth"), 2, "ARCH.TAG"),
    ("factory missing", ("rotate", "-m", "no_such_module:make"), 4, "no_such_module"),
    ("mistyped timm model", ("rotate", "-m", "timm/resnet18x"), 2, "resnet18"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "words"),
                         [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_is_one_sentence_and_an_exit_code(
        command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[str, ...], exit_code: int, words: str) -> None:
    monkeypatch.chdir(folder)
    result = command(*arguments)
    assert result.exit_code == exit_code, result.output
    assert words in result.output
    errors = [line for line in result.output.splitlines()
              if line.startswith(("sanrobust: ", "Error: "))]
    assert len(errors) == 1
    if errors[0].startswith("sanrobust: "):
        rule, _, rest = errors[0].partition(", but ")
        assert rule and ": " in rest, "an error says rule, seen and hint"


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("harm.txt", "w")


def test_a_checkpoint_that_runs_code_is_refused(command: Command, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    result = command("rotate", "-m", SMALL, "--checkpoint", "evil.pth")
    assert result.exit_code == 4, result.output
    assert not Path("harm.txt").exists()


def test_tables_are_rebuilt_from_records(command: Command, tmp_path: Path) -> None:
    command("rotate", "-m", SMALL, "--num-samples", 30, "--out", tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.glob("rotation.*")}
    assert set(before) == {"rotation.csv", "rotation.tex", "rotation.md"}
    for path in tmp_path.glob("rotation.*"):
        path.unlink()
    result = command("table", "rotate", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_text() for path in tmp_path.glob("rotation.*")} == before


def test_the_demo_is_said_on_screen_and_in_every_table(command: Command, tmp_path: Path) -> None:
    result = command("rotate", "-m", SMALL, "--num-samples", 5, "--out", tmp_path)
    assert "no --data" in result.output
    for name in ("rotation.csv", "rotation.tex", "rotation.md"):
        assert "Embedded demonstration" in (tmp_path / name).read_text()


def test_the_environment_names_the_data(command: Command, folder: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANROBUST_DATA", str(folder / "flat"))
    result = command("rotate", "-m", SMALL, "--labels", folder / "good.csv", "--out",
                     folder / "out")
    assert result.exit_code == 0, result.output
    assert pd.read_csv(folder / "out" / "rotation.csv")["data"].tolist() == ["flat"]


def test_a_run_named_imagenet_gets_the_papers_values_beside_it(command: Command,
                                                               folder: Path) -> None:
    (folder / "imagenet.csv").write_text("file,class_index\na.png,3\n")
    torch.save(build(imagenet_config("san10-pair")).state_dict(), folder / "own.pth")
    result = command("rotate", "-m", "san10-pair", "--checkpoint", folder / "own.pth", "--data",
                     folder / "flat", "--labels", folder / "imagenet.csv", "--data-name",
                     "imagenet", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    result = command("table", "rotate", "--paper", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(folder / "out" / "rotation.csv")
    assert table["paper_cw90_top1"].tolist() == [51.8]


def test_untrained_networks_and_other_data_are_not_compared_with_the_paper(
        command: Command, folder: Path) -> None:
    command("rotate", "-m", SMALL, "--num-samples", 5, "--out", folder / "out")
    result = command("table", "rotate", "--paper", "--out", folder / "out")
    assert result.exit_code == 2 and "--data-name imagenet" in result.output


def test_batch_size_fits_itself_to_memory(command: Command, tmp_path: Path) -> None:
    result = command("pgd", "-m", SMALL, "--num-samples", 5, "-b", "auto", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "images per batch fit into memory" in result.output


def test_an_unfinished_run_is_named_beside_the_table(command: Command, tmp_path: Path) -> None:
    command("rotate", "-m", SMALL, "--num-samples", 5, "--out", tmp_path)
    make_old_run(tmp_path, "ab", "c", status="interrupted")
    with pytest.raises(OutputError):
        make_run(tmp_path, "ab", spec=replace(SPEC, model="n.t"))
    told = command("table", "--out", tmp_path).output
    assert "was interrupted after 3 of 4 images; type sanrobust rotate -m m.t" in told
    assert "ended with an error after 2 of 4 images" in told


def test_the_papers_tables_can_be_written(command: Command, tmp_path: Path) -> None:
    assert command("table", "--paper-only", "--out", tmp_path).exit_code == 0
    assert "SAN19-patch" in (tmp_path / "paper" / "pgd.md").read_text()


def test_info_names_backends_and_why_cuda_is_not_used(command: Command) -> None:
    output = command("info").output
    assert "reference" in output and "torch" in output
    assert torch.cuda.is_available() or "not used" in output


def test_info_says_what_the_allocator_does_and_why_not(
        command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def line() -> str:
        return next(each for each in command("info").output.splitlines()
                    if each.startswith("allocator "))

    done = ("M_MMAP_MAX=0", "M_TRIM_THRESHOLD=-1")
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(done))
    assert line().endswith("keeps freed memory (M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1)")
    monkeypatch.undo()
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    refusal = allocator.tune().refusal
    assert refusal is not None and line().endswith(f"as it is: {refusal}")


def test_zoo_lists_shows_adds_and_verifies(command: Command, tmp_path: Path) -> None:
    network = build(small_config("san10-pair", 7))
    checkpoint = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value
                                             in network.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "own.pth")
    added = command("zoo", "add", "san10-pair.mine", tmp_path / "own.pth", "--like",
                    "san10-pair.untrained-small")
    assert added.exit_code == 0, added.output
    assert "san10-pair.mine" in command("zoo", "list", "--tag", "mine").output
    assert "7 (" in command("zoo", "show", "san10-pair.mine").output
    verified = command("zoo", "verify", "san10-pair.mine")
    assert verified.exit_code == 0 and " ok " in verified.output


def test_zoo_verify_fails_on_changed_weights(command: Command, tmp_path: Path) -> None:
    from sanrobust.zoo.store import weights_path
    torch.save(build(small_config("resnet26", 10)).state_dict(), tmp_path / "own.pth")
    command("zoo", "add", "resnet26.mine", tmp_path / "own.pth", "--like",
            "resnet26.untrained-small")
    path = weights_path("resnet26.mine")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = command("zoo", "verify")
    assert result.exit_code == 4 and "failed" in result.output


def test_python_functions_return_the_table(tmp_path: Path) -> None:
    classifier = sanrobust.create_model(SMALL)
    table = sanrobust.rotate(classifier, out=tmp_path)
    assert table["model"].tolist() == [SMALL] and table["n"].tolist() == [451]
    attacked = sanrobust.pgd(SMALL, out=tmp_path, batch_size=128)
    assert attacked["iters"].tolist() == [2, 4]


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rotat'"):
        sanrobust.rotat


def test_a_table_that_cannot_be_printed_is_in_its_files(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([SCRIPT, "rotate", "-m", SMALL, "--num-samples", "2", "--out", "o"],
                              stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 6 and "Traceback" not in done.stderr
    assert "read o/rotation.csv, where it stands as well" in done.stderr
    assert (tmp_path / "o" / "rotation.csv").exists()


def test_what_a_name_tells_a_terminal_is_not_passed_on(command: Command, tmp_path: Path) -> None:
    result = command("rotate", "-m", SMALL, "--checkpoint", tmp_path / "a\x1b[2J\nb.pth")
    assert result.exit_code == 4
    assert "\x1b" not in result.output and len(result.output.strip().splitlines()) <= 3
