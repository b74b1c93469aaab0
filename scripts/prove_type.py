"""Train a tiny random model of one type by every method, with ftcli's code, and check each step.

`python -m scripts.prove_type llama qwen3_5 …` prints the steps.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ftcli.config.recipe import Generation
from ftcli.errors import FtcliError
from ftcli.export.merge_run import MergeOptions, merge_run
from ftcli.inference.generation import answer_prompts
from ftcli.inference.open_model import load_tuned_model
from ftcli.memory.choices import why_no_checkpointing
from ftcli.models.batches import of_tensors
from ftcli.models.loss import row_losses
from ftcli.models.virtual_tokens import backbone_inputs, causal_model
from ftcli.runs.folder import RunFolder
from ftcli.training.job import TrainJob, TrainResult
from ftcli.training.opening import open_run
from ftcli.training.run_record import finish_run
from scripts.tiny_jobs import (
    BATCH,
    METHODS,
    NEW_TOKENS,
    STOPPED_AT,
    Silent,
    job_of,
    tiny_config_of,
    train_job,
    write_model,
    write_recipe,
)

# A full model and a 4-bit base go through the same forward passes as LoRA.
NOT_AGAIN = {
    "qlora": ("checkpointing", "generates", "resumes"),
    "full": ("checkpointing", "generates"),
    "bottleneck": ("resumes",),
    "prefix-tuning": ("resumes",),
    "prompt-tuning": ("resumes",),
}
MERGED = ("lora", "qlora")


class WrongError(Exception):
    """A step ran, and its result is wrong."""


@dataclass
class Proof:
    """What each step of a type found: `yes`, or why not; by method, as `lora trains`."""

    model_type: str
    steps: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record that the block passed, or why not; later steps of the method are left out."""
        try:
            yield
            self.steps[name] = "yes"
        except WrongError as error:
            self.steps[name] = f"wrong: {error}"
        except FtcliError as error:
            self.steps[name] = f"refused: {error.message}"
            raise _EndError from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.steps[name] = f"fails: {_first_line(error)}"
            raise _EndError from error


class _EndError(Exception):
    """The steps of a method end."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = "" if where is None else f" ({Path(where.tb_frame.f_code.co_filename).name})"
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}{place}"


def prove(
    model_type: str,
    folder: Path,
    methods: tuple[str, ...] = tuple(METHODS),
    *,
    config: Any = None,
    briefly: bool = False,
) -> Proof:
    """All steps of a type, in an empty folder; `briefly`: without merges and resumes.

    `config`: instead of a small version of the type's own.
    """
    proof, started = Proof(model_type), time.monotonic()
    try:
        with proof.step("builds"):
            model = write_model(config or tiny_config_of(model_type), folder / "model")
            proof.facts = _facts(model)
            del model
        for method in methods:
            try:
                _prove_method(proof, method, folder, briefly=briefly)
            except _EndError:
                continue
    except _EndError:
        pass
    proof.seconds = round(time.monotonic() - started, 1)
    return proof


def _facts(model: PreTrainedModel) -> dict[str, Any]:
    text = model.config.get_text_config(decoder=True)
    return {
        "class": type(model).__name__,
        "layers": getattr(text, "num_hidden_layers", None),
        "parameters": sum(each.numel() for each in model.parameters()),
    }


def _prove_method(proof: Proof, method: str, folder: Path, *, briefly: bool) -> None:
    started = time.monotonic()
    with proof.step(f"{method} trains"):
        for slower in (1, 4):  # a rate for all types is too much for a few
            recipe = write_recipe(folder, method, slower)
            job = job_of(recipe)
            result = train_job(job)
            before, after = result.first_eval_loss, result.eval_loss
            if before is not None and after is not None and after < 0.999 * before:
                break
        else:
            raise WrongError(f"loss {before} → {after}")
    with proof.step(f"{method} reloads"):
        finish_run(job, result, {}, time.monotonic() - started)
        opened = open_run(job.run.path)
        reloaded = load_tuned_model(opened)
        _require_equal_losses(result.trainer.model, reloaded.network)
    with proof.step(f"{method} gradients"):
        plain = _gradients(result)
        _require_gradients(result, plain, method)
    left_out = NOT_AGAIN.get(method, ())
    no_checkpointing = why_no_checkpointing(job.recipe.method.mode, job.model.architecture)
    if "checkpointing" not in left_out and no_checkpointing is None:
        with proof.step(f"{method} checkpointing"):
            _require_same_with_checkpointing(result, plain)
    if "generates" not in left_out:
        with proof.step(f"{method} generates"):
            _require_greedy_answers(reloaded, job)
    del reloaded, result
    if briefly:
        return
    if method in MERGED:
        with proof.step(f"{method} merges"):
            found = merge_run(
                job.run.path, (), output=None, options=MergeOptions(), reporter=Silent()
            )
            _require(found.report["verdict"] == "pass", str(found.report["verdict"]))
    if "resumes" not in left_out:
        with proof.step(f"{method} resumes"):
            _require_resumes(recipe, job)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise WrongError(otherwise)


def _ids() -> Tensor:
    return torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(1))


def _losses(model: PreTrainedModel) -> Tensor:
    """Losses of two rows, as ftcli's evaluation computes them."""
    ids = _ids()
    return row_losses(model.eval(), of_tensors(ids, ids))[0]


def _require_equal_losses(trained: PreTrainedModel, reloaded: PreTrainedModel) -> None:
    before, after = _losses(trained), _losses(reloaded)
    _require(
        torch.equal(before, after),
        f"losses differ by {(before - after).abs().max():.2g} after saving and loading",
    )


def _gradients(result: TrainResult) -> dict[str, Tensor]:
    """Gradients of one step of ftcli's trainer, by name."""
    trainer = result.trainer
    trainer.model.train()
    torch.manual_seed(0)  # dropout
    trainer.zero_grad()
    batch = trainer.collate_step(range(BATCH))
    trainer.forward_backward(batch.micro_batches, "the proof")
    found = {
        name: weight.grad.clone()
        for name, weight in trainer.model.named_parameters()
        if weight.grad is not None
    }
    trainer.zero_grad()
    return found


def _require_gradients(result: TrainResult, found: dict[str, Tensor], method: str) -> None:
    """Trained weights have a gradient, no others, and no router or tower is trained.

    A router's may be zero, where every token's choice is sure (PhiMoE).
    """
    model = result.trainer.model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    moved = {name for name, each in found.items() if each.any() or _is_router(model, name)}
    idle = sorted(trained - moved)
    others = sorted(found.keys() - trained)
    _require(bool(trained), "nothing is trained")
    _require_none(others, "frozen weights with a gradient")
    _require_none(idle, "trained weights without a gradient")
    if method != "full":
        routers = sorted(name for name in trained if _is_router(model, name))
        _require_none(routers, "routers are trained")


def _require_none(names: list[str], what: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise WrongError(f"{what}: {names[0].removeprefix('base_model.model.')}{more}")


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a weight is in a module next to experts that has an output for each."""
    parts = name.split(".lora_")[0].removesuffix(".weight").split(".")
    parent = model.get_submodule(".".join(parts[:-1]))
    experts = getattr(parent, "experts", None)
    counts = {each.shape[0] for each in experts.parameters() if each.ndim == 3} if experts else ()
    own: Any = getattr(parent, parts[-1], None)
    return getattr(own, "out_features", None) in counts


def _require_same_with_checkpointing(result: TrainResult, plain: dict[str, Tensor]) -> None:
    model = result.trainer.model
    model.gradient_checkpointing_enable()
    found = _gradients(result)
    model.gradient_checkpointing_disable()
    _require(found.keys() == plain.keys(), "other weights have a gradient")
    scale = max(each.abs().max() for each in plain.values())
    worst = max((found[name] - plain[name]).abs().max() for name in plain) / scale
    _require(bool(worst < 1e-5), f"gradients differ by {worst:.1g} of the largest")


def _require_greedy_answers(model: Any, job: TrainJob) -> None:
    """Answers of a batch with left padding and cache are those of a loop without both."""
    renderer = job.model.renderer
    generator = torch.Generator().manual_seed(2)
    prompts = [
        torch.randint(3, 250, (length,), generator=generator).tolist() for length in (21, 9, 14, 3)
    ]
    settings = Generation(max_new_tokens=NEW_TOKENS, temperature=0)
    answers = answer_prompts(model, prompts, settings)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = _greedy(model.network, prompt, renderer.stop_ids)
        text = renderer.tokenizer.decode(ids, skip_special_tokens=True)
        _require(
            answer.text == text,
            f"after {len(prompt)} tokens {answer.text!r} with a cache, {text!r} without",
        )


@torch.no_grad()
def _greedy(model: PreTrainedModel, prompt: list[int], stop_ids: Any) -> list[int]:
    """The most likely tokens, one by one, each from the whole text."""
    ids = torch.tensor([prompt])
    model.eval()
    for _ in range(NEW_TOKENS):
        best = causal_model(model)(**backbone_inputs(model, ids)).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, best[None]), dim=1)
        if int(best) in stop_ids:
            break
    return ids[0, len(prompt) :].tolist()


def _require_resumes(recipe: Path, whole: TrainJob) -> None:
    """A run that is stopped and resumed ends with the weights of one that is not."""
    run = RunFolder(whole.run.path.with_name(whole.run.path.name + "-stopped"))
    job = replace(job_of(recipe, run))
    try:
        train_job(job, stop_at=STOPPED_AT)
        raise WrongError("it does not stop")
    except KeyboardInterrupt:
        pass
    train_job(job_of(recipe, run))
    before, after = _saved(whole.run), _saved(run)
    _require(before.keys() == after.keys(), "other weights are saved")
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    _require_none(changed, "weights differ after a resume")


def _saved(run: RunFolder) -> dict[str, Tensor]:
    files = sorted(run.trained().glob("*.safetensors"))
    return {name: each for file in files for name, each in load_file(file).items()}


def main(types: list[str]) -> None:
    """Print the steps of these types."""
    quiet()
    for model_type in types:
        with TemporaryDirectory(prefix="prove-") as folder:
            proof = prove(model_type, Path(folder))
        print(f"{model_type}  {proof.facts}  {proof.seconds} s")
        for name, found in proof.steps.items():
            print(f"  {name:<28} {found}")
        sys.stdout.flush()


def quiet() -> None:
    """No warnings of libraries, and one thread: models this small wait for threads."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    os.environ["OMP_NUM_THREADS"] = "1"  # ftcli would take all cores
    torch.set_num_threads(1)
    gc.freeze()  # what the imports made; ftcli collects garbage between its stages


if __name__ == "__main__":
    main(sys.argv[1:])
