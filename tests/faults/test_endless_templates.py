"""Chat templates that loop or grow: from a model, from the recipe, in a run, in one row of many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.data.templates import worker
from tests.conftest import CHATML, save_recipe, save_rows
from tests.faults.attacks import Attack, change_json, copied

pytestmark = pytest.mark.fault(30)

Observed = Callable[[str], None]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(v='a') %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}"
)
BOMBS = {
    "loop": (LOOP, "runs for more than 0.3 s"),
    "text": ("{{ 'a' * 10**10 }}", "takes more than 500 MB"),
    "doubling": (GROWING, " more than "),
    "comparison": ("{{ [[1] * 100000] * 100000 == [[1] * 100000] * 100000 }}", "runs for more"),
}


@pytest.fixture(autouse=True)
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.3)


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    save_rows(tmp_path)
    return copied(tiny_model, tmp_path / "base")


def last_line(
    words: list[str], capsys: pytest.CaptureFixture[str], story: tuple[str, ...] = ()
) -> str:
    """The last line of a command, preceded only by its progress."""
    capsys.readouterr()
    assert run(words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if not line.startswith(story or ("prepare ",))] == lines[-1:]
    return lines[-1]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_models_own_template_is_stopped_and_named(
    bomb: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    template, reason = BOMBS[bomb]
    (base / "chat_template.jinja").write_text(template)
    line = last_line(["prepare", str(save_recipe(tmp_path, base))], capsys)
    assert f"the chat template of {base} " in line and reason in line
    observed(f"{len(BOMBS)} templates that loop or grow: each ends in one line with its limit")


def test_a_template_in_the_tokenizers_config_is_stopped(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "chat_template.jinja").unlink()
    change_json(base / "tokenizer_config.json", chat_template=LOOP)
    line = last_line(["train", str(save_recipe(tmp_path, base))], capsys)
    assert f"the chat template of {base} runs for more than" in line


@pytest.mark.parametrize("inline", [True, False])
def test_the_recipes_template_is_stopped_and_named(
    inline: bool,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.jinja").write_text(LOOP)
    recipe = save_recipe(
        tmp_path,
        base,
        data={"train": "rows.jsonl", "template": LOOP if inline else "loop.jinja"},
    )
    line = last_line(["prepare", str(recipe)], capsys)
    name = "data.template" if inline else "data.template (loop.jinja)"
    assert line.startswith(f"{name} runs for more than 0.3 s; no conversation needs that")


def test_a_loop_in_one_row_of_many_ends_the_preparation(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    """An error, not a rejected row: every such row would take the full time limit."""
    test = "{% if 'kettle 40' in messages[0].content %}" + LOOP + "{% endif %}"
    (base / "chat_template.jinja").write_text(test + CHATML)
    line = last_line(["prepare", str(save_recipe(tmp_path, base))], capsys)
    assert "runs for more than 0.3 s" in line
    assert not list((tmp_path / "runs").rglob("*.arrow"))
    observed("a loop in 1 row of 48: exit 1, nothing prepared")


def test_a_runs_template_is_stopped_where_it_is_used(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"max_steps": 1, "batch_size": 4}
    assert run(["train", str(save_recipe(tmp_path, base, training=training))]) == 0
    made = tmp_path / "runs" / "tiny"
    (made / "adapter" / "chat_template.jinja").write_text(LOOP + CHATML)
    for command in (["generate", str(made), "a"], ["eval", str(made)], ["merge", str(made)]):
        line = last_line(command, capsys)
        assert f"the chat template of {made / 'adapter'} runs for more than 0.3 s" in line


def test_a_template_executes_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], observed: Observed
) -> None:
    attack = Attack(tmp_path / "executed")
    command = f"os.system('touch {attack.mark}')"
    escapes = [
        f"{{{{ cycler.__init__.__globals__.{command} }}}}",
        f"{{{{ raise_exception.__globals__.{command} }}}}",
        f"{{{{ namespace.__init__.__globals__['__builtins__'].eval('{attack.mark}') }}}}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ('{0.__class__.__mro__}').format(1) }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/hostname' %}",
        "{% set n = namespace(__class__=1) %}{{ n }}",
    ]
    for number, escape in enumerate(escapes):
        (base / "chat_template.jinja").write_text(escape + CHATML)
        line = last_line(["prepare", str(save_recipe(tmp_path, base, f"run{number}"))], capsys)
        assert "the chat template refuses it" in line or "no conversation needs" in line, line
    assert not attack.succeeded()
    observed(f"{len(escapes)} ways out of the sandbox: all refused")
