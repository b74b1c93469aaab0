"""ftcli: from a general open model to a specialist, on one consumer GPU, from one recipe."""

import os

__version__ = "0.1.0"

# huggingface_hub reads these when it is imported: no telemetry, no bars between our lines.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
