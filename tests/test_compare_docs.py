"""docs/compare.md shows the comparisons that are kept, as the code of today tells them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import build_compare_docs as docs  # noqa: E402

from ftcli.stages.compare.cells import METHODS  # noqa: E402


def test_the_page_is_current() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "make docs"


@pytest.mark.parametrize("name", docs.NAMES)
def test_all_six_were_trained_alike_and_nothing_tells_on_which_machine(name: str) -> None:
    found = docs.kept(name)
    assert tuple(cell.method for cell in found.finished) == METHODS
    assert {cell.training["steps"] for cell in found.finished} == {60}
    assert all(cell.loss < found.base.side.scores["loss"] for cell in found.finished if found.base)
    for file in (docs.data_file(name), docs.PAGE):
        assert "/root" not in file.read_text(encoding="utf-8")
    assert (docs.DOCS / docs.picture(name)).stat().st_size > 10_000


def test_keeping_what_is_kept_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures that `ftcli compare` leaves in its folder are those that the page is made of."""
    import json
    from dataclasses import asdict

    from ftcli.stages.compare.record import BASE_FILE, CELL_FILE

    found = docs.kept("shop")
    assert found.base is not None
    folder = tmp_path / "runs" / found.folder.name
    told = found.as_json() | {"recipe": str(tmp_path / found.recipe)}
    for cell, entry in zip(found.finished, told["cells"], strict=True):
        run = folder / cell.name
        run.mkdir(parents=True)
        entry["run_dir"] = str(run)
        (run / CELL_FILE).write_text(json.dumps(asdict(cell)))
    (folder / BASE_FILE).write_text(json.dumps(asdict(found.base)))
    (folder / "compare.json").write_text(json.dumps(told))
    before = json.loads(docs.data_file("shop").read_text(encoding="utf-8"))
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "figures").mkdir()
    docs.keep("shop", folder)
    assert json.loads(docs.data_file("shop").read_text(encoding="utf-8")) == before
    assert (tmp_path / docs.picture("shop")).is_file()
