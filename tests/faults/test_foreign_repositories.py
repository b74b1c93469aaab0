"""Repositories of a hub are checked before more than small JSON files is downloaded."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import save_recipe, save_rows
from tests.faults.attacks import Attack, change_json, copied
from tests.faults.commands import run_all

pytestmark = pytest.mark.fault(30)

Observed = Callable[[str], None]
COMMIT = "c" * 40


class Repositories(BaseHTTPRequestHandler):
    """A hub with the repositories `owner/<name>` of a folder, which records its requests."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self.send(self.listing(parts[3], tree=parts[4:5] == ["tree"]))
            return
        file = self.folder / parts[1] / parts[-1]
        self.send(file.read_bytes() if file.is_file() else None)

    def listing(self, repository: str, *, tree: bool) -> bytes:
        names = sorted(path.name for path in (self.folder / repository).iterdir())
        if tree:
            files = [{"type": "file", "path": n, "size": 1, "oid": "a" * 40} for n in names]
            return json.dumps(files).encode()
        siblings = [{"rfilename": name} for name in names]
        found = {"id": f"owner/{repository}", "sha": COMMIT, "siblings": siblings}
        return json.dumps(found).encode()

    def send(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{zlib.crc32(content or b""):x}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a hub, and the paths requested from it."""
    handler = type("Handler", (Repositories,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
        server.shutdown()


@pytest.mark.slow
def test_a_repository_of_pickles_or_with_an_adapter_is_refused_before_it_is_fetched(
    tmp_path: Path, tiny_model: Path, observed: Observed
) -> None:
    attack = Attack(tmp_path / "executed")
    repositories = tmp_path / "repositories"
    for name in ("whole", "pickled", "adapted", "indexed"):
        copied(tiny_model, repositories / name)
    pickled = repositories / "pickled"
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(attack.pickled)
    change_json(repositories / "adapted" / "adapter_config.json", peft_type="LORA")
    (repositories / "indexed" / "model.safetensors").rename(repositories / "indexed" / "evil.bin")
    index = repositories / "indexed" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "evil.bin"}}))
    save_rows(tmp_path)
    training = {"max_steps": 1, "batch_size": 4}
    commands = [
        ["train", str(save_recipe(tmp_path, Path(f"owner/{name}"), name, training=training))]
        for name in ("whole", "pickled", "adapted", "indexed")
    ]
    with hub(repositories) as (endpoint, asked):
        environment = {
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
        }
        codes, output = run_all(commands, tmp_path, environment)
    assert codes == [0, 1, 1, 1], output
    assert "owner/pickled: its weights are pickles (pytorch_model.bin)" in output
    assert "owner/adapted: has an adapter next to the model" in output
    assert "names 'evil.bin', and ftcli opens only safetensors files in the same folder" in output
    assert not [path for path in asked if path.endswith(".bin")]
    weights = [path for path in asked if path.endswith("model.safetensors")]
    assert weights and all("/whole/" in path for path in weights)
    assert not attack.succeeded()
    observed("3 of 4 repositories refused in one line; of none a pickle was fetched")
