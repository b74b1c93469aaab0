"""From a local folder no socket is opened, and a hub that does not answer is asked once."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import save_recipe, save_rows
from tests.faults.commands import ROOT, can_be_sealed, run_all

Observed = Callable[[str], None]
TRAINING = {"max_steps": 4, "batch_size": 4, "eval_steps": 2, "save_steps": 2}


def all_commands(folder: Path) -> list[list[str]]:
    recipe, made = str(folder / "tiny.yaml"), str(folder / "runs" / "tiny")
    return [
        ["prepare", recipe],
        ["train", recipe],
        ["eval", made],
        ["merge", made],
        ["generate", made, "Product: kettle"],
    ]


@pytest.mark.fault(30, 31)
@pytest.mark.skipif(not can_be_sealed(), reason="needs seccomp (Linux on x86-64 or arm64)")
def test_no_command_opens_a_socket_for_a_local_folder(
    tmp_path: Path, tiny_model: Path, observed: Observed
) -> None:
    """The kernel kills the process at the first, whoever opens it in whatever language."""
    save_rows(tmp_path)
    save_recipe(tmp_path, tiny_model, training=TRAINING, generation={"max_new_tokens": 2})
    codes, output = run_all(all_commands(tmp_path), tmp_path, {}, sealed=True)
    assert codes == [0] * 5, output
    observed("prepare, train, validate, save, eval, merge, generate in a process without sockets")


@pytest.mark.fault(30)
@pytest.mark.skipif(not can_be_sealed(), reason="needs seccomp (Linux on x86-64 or arm64)")
def test_a_sealed_process_is_killed_at_its_first_socket() -> None:
    program = "from tests.faults.commands import seal; import socket; seal(); socket.socket()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGSYS


@contextmanager
def silent_hub() -> Iterator[tuple[str, list[int]]]:
    """A server that takes connections and never answers; and how many it has taken."""
    taken: list[int] = []
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return
            taken.append(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)
    for connection in held:
        connection.close()


@pytest.mark.slow
@pytest.mark.fault(31)
def test_a_hub_that_falls_silent_hinders_neither_a_training_nor_its_saves(
    tmp_path: Path, tiny_model: Path, observed: Observed
) -> None:
    """A model of the hub in the cache; its embeddings are trained and saved, which is when PEFT
    would ask for the size of its vocabulary."""
    save_rows(tmp_path)
    method = {"mode": "lora", "rank": 2, "modules_to_save": ["embed_tokens", "lm_head"]}
    generation = {"max_new_tokens": 2}
    recipe = save_recipe(
        tmp_path, Path("owner/tiny"), method=method, training=TRAINING, generation=generation
    )
    repository = tmp_path / "home" / "hub" / "models--owner--tiny"
    commit = "a" * 40
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with silent_hub() as (endpoint, taken):
        environment = {
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
        }
        codes, output = run_all(all_commands(tmp_path), tmp_path, environment)
    assert codes == [0] * 5, output
    assert len(taken) <= 2, "it is asked once, whatever is opened or saved after that"
    saved = tmp_path / "runs" / "tiny"
    assert (saved / "checkpoints" / "step-4").is_dir() and (saved / "merged").is_dir()
    assert "id: owner/tiny" in (saved / "recipe.yaml").read_text() and recipe.is_file()
    observed(
        f"5 commands with a silent hub: exit 0, {len(taken)} question; trained embeddings saved "
        "and read back"
    )
