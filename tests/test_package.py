"""What is installed: the licence, every data file, the command; no address is made up."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from email.parser import HeaderParser
from pathlib import Path

import pytest

from ftcli import __version__

ROOT = Path(__file__).parents[1]
CODE = sorted(ROOT.joinpath("ftcli").rglob("*.py"))
# The text as apache.org publishes it (LICENSE-2.0.txt), of which Debian keeps the same bytes.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def built(folder: Path, package: Path, hook: str) -> Path:
    """What a hook of setuptools makes of the package in a copy of the project."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        package, folder / "ftcli", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    (folder / "built").mkdir()
    code = f"import setuptools.build_meta as b; print(b.{hook}('built'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return folder / "built" / done.stdout.splitlines()[-1]


def test_the_licence_is_the_whole_text_and_part_of_what_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(ROOT / "ftcli/__init__.py", package)
    (tmp_path / "copy").mkdir()
    found = built(tmp_path / "copy", package, "prepare_metadata_for_build_wheel")
    said = HeaderParser().parsestr((found / "METADATA").read_text(encoding="utf-8"))
    assert (said["License-Expression"], said.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert said["Version"] == __version__
    text = (found / "licenses" / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    with zipfile.ZipFile(built(tmp_path, ROOT / "ftcli", "build_wheel")) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("ftcli/")}
        (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        assert wheel.read(entry).decode().split("\n")[1] == "ftcli = ftcli.cli:main"
    files = {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "ftcli").rglob("*.*")}
    assert names == files
    assert {
        "ftcli/py.typed",
        "ftcli/memory/known_models.json",
        "ftcli/memory/measured_models.tsv",
    } <= names


def test_no_address_is_named_that_does_not_exist() -> None:
    """There is no public one yet: who adds the first changes this test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "urls" not in project
    assert project["license-files"] == ["LICENSE"]


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_the_readme_leads_to(name: str) -> None:
    assert f"]({name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / name).stat().st_size > 0


def test_the_changelog_has_this_version() -> None:
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_rooms_files_and_functions_are_small() -> None:
    """At most 12 files, 400 lines, 60 lines: what one reads at once."""
    folders = Counter(file.parent for file in CODE if file.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > 12} == {}
    texts = {file: file.read_text(encoding="utf-8") for file in CODE}
    lines = {file: text.count("\n") for file, text in texts.items()}
    assert {file: count for file, count in lines.items() if count > 400} == {}
    found = [
        (file, node.name)
        for file, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
    ]
    assert found == []
