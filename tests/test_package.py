"""What the package says of itself: its licence comes with it, and no address is made up."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The text as apache.org publishes it (LICENSE-2.0.txt), of which Debian keeps the same bytes.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_licence_is_the_whole_text_and_part_of_what_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    kept = [name for name in ("pyproject.toml", "README.md", "LICENSE") if (ROOT / name).exists()]
    for name in kept:
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("ftcli", "built"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "ftcli/__init__.py", tmp_path / "ftcli")
    build = "import setuptools.build_meta as b; print(b.prepare_metadata_for_build_wheel('built'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    built = tmp_path / "built" / done.stdout.splitlines()[-1]
    said = HeaderParser().parsestr((built / "METADATA").read_text(encoding="utf-8"))
    assert (said["License-Expression"], said.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    text = (built / "licenses" / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2


def test_no_address_is_named_that_does_not_exist() -> None:
    """There is no public one yet: who adds the first changes this test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "urls" not in project
    assert project["license-files"] == ["LICENSE"]


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_the_readme_leads_to(name: str) -> None:
    assert f"]({name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / name).stat().st_size > 0
