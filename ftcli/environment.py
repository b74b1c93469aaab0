"""Variables that libraries read when they are imported: no telemetry, no bars, no advice of theirs
in between our lines."""

import logging
import os
import warnings

from ftcli.compat import CPU_OPERATIONS, refuse_hub_kernel

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Else transformers asks a service of the hub to convert a repository that holds pickles alone.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
# bitsandbytes 0.50 compiles four functions while it is imported, for which torch's compiler is
# imported, too: 0.8 s. Who wants the compiler calls `wants_compiler` first.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# libgomp's threads spin for milliseconds at every barrier. Where another program wants a core, the
# spinning takes it from the thread that is waited for: four times the time of a forward pass on two
# cores, measured; this spins shortly and then sleeps, which costs 2% to 5% on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# transformers 5.24 renames gradient_checkpointing and TRL 1.16 still reads the old name.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|trl|peft|torch).*")

refuse_hub_kernel()
logging.getLogger(CPU_OPERATIONS).setLevel(logging.ERROR)  # else it warns that it has no kernel


def wants_compiler() -> None:
    """Let torch.compile compile: it asks where it is called, not where it is imported."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        del os.environ["TORCHDYNAMO_DISABLE"]
