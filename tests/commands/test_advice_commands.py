"""Every command that is printed as advice runs as it stands, from where the user stands."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.runs.folder import RunFolder
from tests.commands.test_training import stop_at
from tests.compared import in_this_process
from tests.conftest import save_recipe, save_rows
from tests.tiers import tiers

# Names that a shell would take apart.
DONE, STOPPED, NEW = "my shop", "my stopped", "my new"
TRAINING = {"max_steps": 4, "batch_size": 4, "learning_rate": "1e-3", "eval_steps": 2}
# What begins a command where it is advised, and what ends it.
COMMAND = re.compile(r"(?:^ *|: |\(|next +)(ftcli [^\n;)]*)", re.MULTILINE)


def said(*words: str, code: int) -> str:
    """All that a command prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run(words)
    text = err.getvalue() + out.getvalue()
    assert found == code, text
    return text


def commands_in(text: str) -> list[list[str]]:
    """What follows `ftcli` in each command."""
    return [shlex.split(typed)[1:] for typed in COMMAND.findall(text)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path, str, str]:
    """A folder with a finished run, a stopped one and a recipe that was not trained; a copy of it;
    and what the two trainings printed."""
    folder = tmp_path_factory.mktemp("commands") / "a project"
    folder.mkdir()
    save_rows(folder)
    for name in (DONE, STOPPED, NEW):
        save_recipe(folder, tiny_model, name, training=TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = said("train", f"{DONE}.yaml", code=0)
        stop_at(1, patch)
        stopped = said("train", f"{STOPPED}.yaml", "--set", "training.seed=7", code=130)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return folder, copy, done, stopped


@pytest.fixture
def project(kept: tuple[Path, Path, str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder as it was left, to stand in."""
    folder, copy, *_ = kept
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    monkeypatch.chdir(folder)
    yield folder


def run_of(name: str) -> RunFolder:
    return RunFolder(Path("runs", name).absolute())


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damaged_rows() -> str:
    spoil(run_of(DONE).data / "test.arrow")
    return said("eval", f"runs/{DONE}", code=1)


def no_data() -> str:
    shutil.rmtree(run_of(DONE).data)
    return said("eval", f"runs/{DONE}", code=1)


def damaged_weights() -> str:
    spoil(run_of(DONE).adapter / "adapter_model.safetensors")
    return said("generate", f"{DONE}.yaml", "Hi", code=1)


def damaged_checkpoints() -> str:
    for file in run_of(STOPPED).checkpoints.glob("*/*.safetensors"):
        spoil(file)
    return said("train", f"runs/{STOPPED}", code=1)


def no_checkpoint() -> str:
    shutil.rmtree(run_of(STOPPED).checkpoints)
    return said("train", f"runs/{STOPPED}", code=1)


def no_prompt_manifest() -> str:
    run_of(DONE).prompt_manifest.unlink()
    return said("eval", f"runs/{DONE}", code=1)


def broken_prompt_manifest() -> str:
    run_of(DONE).prompt_manifest.write_text("{")
    return said("eval", f"runs/{DONE}", code=1)


def unmeasured() -> str:
    run_of(DONE).update_manifest(memory=None)
    return said("estimate-vram", "--calibrate", f"runs/{DONE}", code=1)


def changed_rows() -> str:
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Is it open?", "completion": "Yes."}) + "\n")
    return said("train", f"{DONE}.yaml", code=1)


def inexact_merge() -> str:
    from peft.tuners.lora import Linear

    whole = Linear.get_delta_weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "get_delta_weight", lambda *arguments: 2 * whole(*arguments))
        return said("merge", f"runs/{DONE}", code=1)


def another_comparison() -> str:
    flags = ("--methods", "lora", "--steps")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        said("compare", f"{NEW}.yaml", *flags, "1", code=0)
        return said("compare", f"{NEW}.yaml", *flags, "2", code=1)


RATE = ("--set", "training.learning_rate=5e-4")
SITUATIONS: dict[str, tuple[Callable[[], str], int]] = {
    "report of a stopped run": (lambda: said("report", f"runs/{STOPPED}", code=0), 1),
    "report of a finished run": (lambda: said("report", f"{DONE}.yaml", code=0), 1),
    "eval of a stopped run": (lambda: said("eval", f"runs/{STOPPED}", code=1), 1),
    "eval of its recipe": (lambda: said("eval", f"{STOPPED}.yaml", code=1), 1),
    "merge of a stopped run": (lambda: said("merge", f"runs/{STOPPED}", code=1), 1),
    "generate of a stopped run": (lambda: said("generate", f"runs/{STOPPED}", "Hi", code=1), 1),
    "eval of a recipe that was not trained": (lambda: said("eval", f"{NEW}.yaml", code=1), 1),
    "another recipe on a finished run": (lambda: said("train", f"{DONE}.yaml", *RATE, code=1), 2),
    "another recipe on a stopped run": (lambda: said("train", f"{STOPPED}.yaml", *RATE, code=1), 1),
    "other rows on a finished run": (changed_rows, 1),
    "a finished run": (lambda: said("train", f"{DONE}.yaml", code=0), 2),
    "a finished run by its folder": (lambda: said("train", f"runs/{DONE}", code=0), 2),
    "damaged rows": (damaged_rows, 1),
    "no data": (no_data, 1),
    "damaged weights": (damaged_weights, 1),
    "damaged checkpoints": (damaged_checkpoints, 1),
    "no checkpoint": (no_checkpoint, 1),
    "no prompt manifest": (no_prompt_manifest, 1),
    "a broken prompt manifest": (broken_prompt_manifest, 1),
    "a run without measured memory": (unmeasured, 1),
    "a merge that is not exact": (inexact_merge, 1),
    "another comparison": (another_comparison, 1),
    "a smoke test": (lambda: said("train", f"{NEW}.yaml", "--smoke-test", code=0), 1),
    "an unknown flag": (lambda: said("eval", "--nosuch", code=2), 1),
}
QUICK = ("eval of a stopped run", "another recipe on a finished run", "no data", "an unknown flag")


@pytest.mark.parametrize(
    "situation",
    tiers(SITUATIONS, *QUICK),
)
def test_what_is_advised_runs(project: Path, situation: str) -> None:
    provoke, count = SITUATIONS[situation]
    text = provoke()
    found = commands_in(text)
    assert len(found) == count, text
    for words in found:
        said(*words, code=0)


@pytest.mark.parametrize("situation", tiers(["damaged rows", "no data"], "damaged rows"))
def test_preparing_a_run_gives_it_its_rows_back(project: Path, situation: str) -> None:
    (prepare,) = commands_in(SITUATIONS[situation][0]())
    said(*prepare, code=0)
    said("eval", f"runs/{DONE}", code=0)
    assert not run_of(f"{DONE}-2").path.exists()


def test_what_a_training_ends_with_runs(project: Path, kept: tuple[Path, Path, str, str]) -> None:
    _, _, done, stopped = kept
    assert commands_in(done) == [["eval", f"runs/{DONE}"]]
    (go_on,) = commands_in(stopped)
    said(*go_on, code=0)
    assert run_of(STOPPED).state == "finished"


def test_the_commands_of_a_report_run_from_the_folder_that_holds_the_runs(project: Path) -> None:
    names = []
    page = html.unescape(run_of(DONE).report.read_text(encoding="utf-8"))
    for typed in re.findall("<dt><code>(ftcli .*?)</code></dt>", page):
        words = shlex.split(typed)[1:]
        names.append(words[0])
        said(*words, code=0)
    assert names == ["train", "eval", "generate", "merge", "report"]


def test_a_run_that_began_with_another_is_trained_again_from_it(project: Path) -> None:
    said("train", f"{NEW}.yaml", "--from", f"runs/{DONE}", code=0)
    for path in (f"{NEW}.yaml", f"runs/{NEW}"):
        text = said("train", path, code=0)
        said(*commands_in(text)[0], code=0)
    for name in (f"{NEW}-2", f"{NEW}-3"):
        assert run_of(name).read_manifest()["parent"] == str(run_of(DONE).path)
