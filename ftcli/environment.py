"""Environment variables that libraries read at import: no telemetry, progress bars or advice."""

import logging
import os
import platform
import warnings

from ftcli.compat import CPU_OPERATIONS, refuse_hub_kernel


def is_wsl() -> bool:
    """Whether this is Linux in Windows, whose kernel has Microsoft's name."""
    return "microsoft" in platform.release().lower()


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Else transformers asks a service of the hub to convert repositories with pickles only.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
# bitsandbytes 0.50 compiles four functions at import, which imports torch's compiler: 0.8 s.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Padded rows change the sizes of tensors in each step, which leaves gaps in the GPU's memory that
# torch has reserved; segments that grow leave few (torch's notes on CUDA). Windows has none.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ and not is_wsl():
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# libgomp's threads spin for milliseconds at every barrier. If another program needs a core, they
# take it from the thread they wait for: a forward pass on two cores took four times as long. With
# this value they sleep earlier, which costs 2% to 5% on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# transformers 5.24 renames gradient_checkpointing and TRL 1.16 still reads the old name.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|trl|peft|torch).*")

refuse_hub_kernel()
logging.getLogger(CPU_OPERATIONS).setLevel(logging.ERROR)  # else it warns of the missing kernel
