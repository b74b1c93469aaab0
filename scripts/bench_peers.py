"""One virtual environment a peer, so that no program decides which versions another one gets.

python scripts/bench_peers.py setup               # all of them, in bench/peers/
python scripts/bench_peers.py setup llamafactory
python scripts/bench_peers.py versions
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

ENVIRONMENTS = Path("bench/peers")

# Packages that decide how fast a training is, or what it computes.
TOLD = (
    *("ftcli", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("tokenizers", "numpy", "llamafactory", "litgpt", "lightning"),
)

_VERSIONS = """
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["setup", "versions"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_requirements()))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(_requirements())
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(_requirements())}")
    for name in arguments.names or _requirements():
        if arguments.action == "setup":
            _set_up(name)
        print(name, json.dumps(versions(programs_of(name))))


def programs_of(name: str) -> Path:
    """The folder of the environment's programs; TRL's may be that of ftcli, which stands on it."""
    programs = ENVIRONMENTS.absolute() / name / "bin"
    if programs.is_dir():
        return programs
    if name == "trl":
        return Path(sys.executable).parent
    raise SystemExit(f"{name} is not set up: python scripts/bench_peers.py setup {name}")


def is_set_up(name: str) -> bool:
    """Whether its environment is there, or that of ftcli does."""
    return name == "trl" or (ENVIRONMENTS / name / "bin").is_dir()


def versions(programs: Path) -> dict[str, str]:
    """Python and the packages that matter, as that environment has them."""
    command = [str(programs / "python"), "-I", "-c", _VERSIONS, *TOLD]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


def _requirements() -> dict[str, list[str]]:
    """Peer → what pip is asked for; all of them on the torch that ftcli runs on.

    torchtune 0.6.1 is left out: it starts with torchao 0.15, but has no tokenizer for this model.
    """
    torch = _ours("torch")
    own = [_ours(name) for name in ("transformers", "accelerate", "datasets", "bitsandbytes")]
    return {
        "trl": [torch, *own, f"trl[peft]=={_release('trl')}", _ours("peft")],
        # the newest that its own bounds allow (0.9.5: transformers ≤ 5.6, peft ≤ 0.18.1,
        # accelerate ≤ 1.11, datasets ≤ 4.0), said here so that they stay what was measured
        "llamafactory": [
            *(torch, "llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1"),
            *("trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0", _ours("bitsandbytes")),
        ],
        # requests: what reads its settings wants it, and its own list has it not
        "litgpt": [torch, "litgpt==0.5.13", "requests>=2.31,<3"],
    }


def _ours(package: str) -> str:
    return f"{package}=={_release(package)}"


def _release(package: str) -> str:
    """Its version without the build, which is for the package index to choose."""
    return metadata.version(package).partition("+")[0]


def _set_up(name: str) -> None:
    folder = ENVIRONMENTS / name
    print(f"{folder}: {' '.join(_requirements()[name])}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder.absolute() / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", *_requirements()[name]]
    subprocess.run(install, check=True)
    if name == "llamafactory":
        _let_torchaudio_load(python)


def _let_torchaudio_load(python: str) -> None:
    """LLaMA-Factory imports torchaudio, for text too; its own build wants the CUDA build of torch.

    Without its compiled half it loads, and nothing of that is called for text.
    """
    if subprocess.run([python, "-c", "import torchaudio"], capture_output=True).returncode:
        where = "import importlib.util as u; print(u.find_spec('torchaudio').origin)"
        output = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
        for library in (Path(output.stdout.strip()).parent / "lib").glob("*.so"):
            library.unlink()
    subprocess.run([python, "-c", "import torchaudio"], check=True)


if __name__ == "__main__":
    main()
