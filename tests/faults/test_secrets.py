"""Tokens and passwords of the environment, of files and of the recipe: in nothing that is written
or said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import save_recipe, save_rows
from tests.faults.commands import run_all

pytestmark = pytest.mark.fault(29)

Observed = Callable[[str], None]

# Joined, so that no scanner of sources takes them for real ones.
SET = {
    "HF_TOKEN": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "ZyXwVuTsRqPoNmLkJiHgFeDcBa543210",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYsecret",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
}
IN_FILE = "hf_" + "FiLeFiLeFiLeFiLeFiLeFiLeFiLeFiLe"
IN_COMMENT = "hf_" + "CoMmEnTcOmMeNtCoMmEnTcOmMeNtCoMm"
PASSWORD = "opensesame-secret"
SECRETS = (*SET.values(), IN_FILE, IN_COMMENT, PASSWORD)

# Stands for the tracker, and records all that it receives.
WANDB = """
import os
__version__ = "0.99"
class Anything:
    def __getattr__(self, name):
        return Anything()
    def __call__(self, *args, **kwargs):
        with open(os.environ["RECEIVED"], "a") as file:
            file.write(repr((args, kwargs)) + "\\n")
        return Anything()
    def __setitem__(self, key, value):
        self(key, value)
    def __contains__(self, key):
        return False
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything()
"""

# Runs in the process of the commands: a signal at step 2, and a bug that shows a secret.
MEDDLING = """
import os, signal
from ftcli import console
from ftcli.evaluation import run_evaluation
original = console._PlainLines.update
def update(self, done, figures=""):
    original(self, done, figures)
    if self.label == "step" and done == 2 and "STOPPED" not in os.environ:
        os.environ["STOPPED"] = "1"
        os.kill(os.getpid(), signal.SIGINT)
console._PlainLines.update = update
def broken(path, overrides, asked, *rest):
    if asked.limit == 7:
        raise RuntimeError(f"Authorization: Bearer {os.environ['HF_TOKEN']}")
    return evaluate(path, overrides, asked, *rest)
evaluate, run_evaluation.evaluate_run = run_evaluation.evaluate_run, broken
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A recipe with a token in a comment, a token in a file, and a tracker that listens."""
    home = tmp_path_factory.mktemp("secrets")
    save_rows(home)
    training = {"max_steps": 4, "batch_size": 4, "eval_steps": 2, "report_to": ["wandb"]}
    recipe = save_recipe(home, tiny_model, training=training, generation={"max_new_tokens": 2})
    recipe.write_text(f"# {IN_COMMENT}\n{recipe.read_text()}# token: {IN_COMMENT}\n")
    (home / "cache").mkdir()
    (home / "cache" / "token").write_text(IN_FILE)
    tracker = home / "site" / "wandb"
    (tracker / "sdk" / "lib").mkdir(parents=True)
    (tracker / "__init__.py").write_text(WANDB)
    (tracker / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    (home / "first.py").write_text(MEDDLING)
    return home


def commands(home: Path, complete: bool) -> list[tuple[int, list[str]]]:
    recipe, made = str(home / "tiny.yaml"), str(home / "runs" / "tiny")
    url = f"https://me:{PASSWORD}@hub.example/owner/name"
    compared = ["compare", recipe, "--methods", "lora", "--set", "training.report_to=[]"]
    return [
        *([(0, compared)] if complete else []),
        (0, ["prepare", recipe, "--preview", "2"]),
        (130, ["train", recipe, "--debug"]),
        (0, ["train", recipe]),
        (0, ["eval", made, "--json"]),
        (0, ["merge", made, "--json"]),
        (0, ["generate", made, "Product: kettle"]),
        (0, ["train", recipe, "--fresh", "--dry-run", "--json"]),
        (0, ["estimate-vram", recipe, "--json"]),
        (70, ["eval", made, "--limit", "7", "--debug", "--json"]),
        (2, ["train", recipe, "--set", f"model.id={url}", "--json"]),
        (2, ["train", recipe, "--set", f"data.train={url}.jsonl", "--debug"]),
        (2, ["train", recipe, "--set", f"data.system=My token is {SET['HF_TOKEN']}."]),
        (2, ["train", recipe, "--set", f"training.seed={SET['WANDB_API_KEY']}x", "--json"]),
        (2, ["prepare", recipe, "--set", SET["HF_TOKEN"]]),
        (1, ["eval", str(home / SET["HF_TOKEN"]), "--json", "--debug"]),
    ]


@pytest.mark.slow
def test_no_secret_is_written_or_said(home: Path, complete: bool, observed: Observed) -> None:
    environment = {
        **SET,
        "HF_HOME": str(home / "cache"),
        "RECEIVED": str(home / "instructions.txt"),
        "HF_HUB_OFFLINE": "1",
    }
    wanted = commands(home, complete)
    codes, output = run_all(
        [command for _, command in wanted],
        home,
        environment,
        packages=home / "site",
    )
    assert codes == [code for code, _ in wanted], output
    assert "contains a password (user:password@)" in output
    assert "contains the secret in HF_TOKEN" in output
    assert "Authorization: Bearer ***" in output, "the bug has shown it, redacted"
    received = (home / "instructions.txt").read_text()
    assert "learning_rate" in received, "the tracker has the training"
    ours = {home / "tiny.yaml", home / "commands.json", home / "cache" / "token"}
    written = [path for path in home.rglob("*") if path.is_file() and path not in ours]
    assert len(written) > 30
    for secret in SECRETS:
        assert secret not in output
        for path in written:
            assert secret.encode() not in path.read_bytes(), f"{secret} in {path}"
            assert secret not in str(path)
    observed(
        f"{len(SECRETS)} secrets, {len(codes)} commands: 0 hits in {len(written)} files, in what "
        "was said, and in what a tracker received"
    )


def test_a_recipe_with_a_secret_is_refused_at_its_line_without_showing_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.cli import run

    monkeypatch.setenv("SHOP_API_KEY", "a-key-of-the-shop")
    recipe = tmp_path / "secret.yaml"
    for value, kind in (
        (f"https://me:{PASSWORD}@hub.example/owner/name", "a password (user:password@)"),
        (f"owner/{IN_COMMENT}", "a token"),
        ("a-key-of-the-shop", "the secret in SHOP_API_KEY"),
    ):
        recipe.write_text(
            f"name: a\nmodel:\n  id: {value}\nmethod: {{mode: lora}}\ndata: {{train: a}}\n"
        )
        assert run(["train", str(recipe), "--json"]) == 2
        out, err = capsys.readouterr()
        assert f"secret.yaml:3: model.id: contains {kind}, and a recipe is copied" in err
        assert json.loads(out)["error"]["line"] == 3
        for secret in (*SECRETS, "a-key-of-the-shop"):
            assert secret not in out + err
