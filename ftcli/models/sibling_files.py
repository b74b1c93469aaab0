"""What lies beside the weights of a model and is saved with what is trained from it."""

from __future__ import annotations

from pathlib import Path

from ftcli.models.fingerprint import model_folder

# Tokenizer, vocabulary, template and configuration; not pictures or other forms of the weights.
SUFFIXES = {".json", ".txt", ".model", ".tiktoken", ".jinja"}
WEIGHTS_INDEX = ".index.json"  # a map of tensors to files
# tokenizers 0.23 saves with indents and each merge as a list; measured: 2.6 times a compact file
# with merges as texts (49,152 tokens), 1.0 times one of its own.
GROWTH = 3
MERGES_AS_TEXTS = b'"merges": [\n      "'


def tokenizer_bytes(source: str, revision: str | None = None) -> int:
    """What a model's tokenizer and configuration take at most, within 1 kB, when saved again.

    Of a local folder, or of a hub model in the local cache; 0 where it is not on this machine.
    """
    folder = model_folder(source, revision)
    if folder is None:
        return 0
    return sum(
        _saved_bytes(file)
        for file in folder.iterdir()
        if file.suffix in SUFFIXES and not file.name.endswith(WEIGHTS_INDEX) and file.is_file()
    )


def _saved_bytes(file: Path) -> int:
    size = file.stat().st_size
    if file.name != "tokenizer.json":
        return size
    written = file.read_bytes()
    return size * GROWTH if b"\n" not in written[:1000] or MERGES_AS_TEXTS in written else size
