"""Train a tiny random model of one type by every method, with ftcli's code, and check each step.

`python -m scripts.prove_type llama qwen3_5 …` prints the steps. Sizes are small and layers few
(ftcli.training.smoke.tiny_config); the tokenizer reads bytes. The memory estimate is not part of
the proof: every plan takes that of one small model.
"""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ftcli.compat import attention_name
from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Generation
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.errors import FtcliError
from ftcli.export.merge_run import MergeOptions, merge_run
from ftcli.inference.generation import answer_prompts
from ftcli.inference.open_model import load_tuned_model
from ftcli.models.architectures.find import find_architecture
from ftcli.models.batches import of_tensors
from ftcli.models.device import hardware_for
from ftcli.models.load import load_renderer, model_class
from ftcli.models.loss import row_losses
from ftcli.models.virtual_tokens import backbone_inputs, causal_model
from ftcli.runs.folder import RunFolder
from ftcli.runs.signals import StopSignals
from ftcli.training.job import BaseModel, TrainJob, TrainResult
from ftcli.training.opening import open_run
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from ftcli.training.run_record import finish_run
from ftcli.training.smoke.tiny_config import Short, tiny_values
from ftcli.training.train import train
from scripts.model_defaults import DEFAULTS

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora", "rank": 8},
    "qlora": {"mode": "qlora", "rank": 8},
    "full": {"mode": "full"},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 16},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4},
}
RATES = {"full": 3e-3, "prefix-tuning": 1e-1, "prompt-tuning": 3e-1}
RATE = 2e-2
STEPS, STOPPED_AT = 4, 1
BATCH, MICRO_BATCH = 8, 4
ROWS, NEW_TOKENS = 24, 6
# A full model and a 4-bit base go through the same forward passes as LoRA.
NOT_AGAIN = {
    "qlora": ("checkpointing", "generates", "resumes"),
    "full": ("checkpointing", "generates"),
}
MERGED = ("lora", "qlora")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHORT = Short(vocab=320, window=16, layers=2)
# Far from zero, so that a wrong mask or position shows.
INITIAL_STD = 0.1


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


class Silent:
    """A reporter that prints nothing; `on_step` gets the number of each step."""

    def __init__(self, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.on_step = on_step
        self.is_step = False

    def note(self, text: str) -> None:
        """Drop notes."""

    def warn(self, text: str) -> None:
        """Drop warnings."""

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Any]:
        before, self.is_step = self.is_step, label == "step"
        yield self
        self.is_step = before

    def update(self, done: int, figures: str = "") -> None:
        if self.is_step:
            self.on_step(done)


# The model and its rows


def tiny_config_of(model_type: str) -> Any:
    """A small config of a type; raises what transformers raises for defaults of no model."""
    defaults = DEFAULTS.get(model_type, {})
    config = AutoConfig.for_model(model_type, **defaults)
    known = config.to_dict()
    values = _with_wide_weights(tiny_values(known, known, short=SHORT))
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return type(config).from_dict(values)


def _with_wide_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with larger initial weights, also in configs in it."""
    wide = {
        key: _with_wide_weights(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    for key in ("initializer_range", "init_std"):
        if key in wide:
            wide[key] = INITIAL_STD
    return wide


def write_model(config: Any, folder: Path) -> PreTrainedModel:
    """Write a random model and its tokenizer."""
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    for (
        weight
    ) in model.parameters():  # zeros, as of some scales, would hide the weights before them
        if not weight.any():
            torch.nn.init.normal_(weight, std=INITIAL_STD)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, with ChatML."""
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokens = [*controls, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(controls))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=controls[2], pad_token=controls[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def write_recipe(folder: Path, method: str, **training: Any) -> Path:
    """A recipe for the model in the folder; every run of it takes the same steps."""
    rows = folder / "rows.jsonl"
    if not rows.is_file():
        lines = [{"prompt": f"{n} " * (n % 5 + 1), "completion": "yes"} for n in range(ROWS)]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    name = "-".join([method, *training])
    values = {
        "name": name,
        "model": {"id": str(folder / "model"), "attention": training.pop("attention", "auto")},
        "method": METHODS[method],
        "data": {"train": str(rows), "validation": 0.2, "test": 0, "allow_overlap": True},
        "training": {
            "max_steps": STEPS,
            "batch_size": BATCH,
            "micro_batch_size": MICRO_BATCH,
            "learning_rate": RATES.get(method, RATE),
            "lr_scheduler": "constant",
            "packing": False,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "eval_steps": STEPS,
            "save_steps": STEPS,
            **training,
        },
        "output": str(folder / "runs" / name),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def job_of(recipe_file: Path, run: RunFolder | None = None) -> TrainJob:
    """The job that `ftcli train` would make, in a folder of its own if one is given."""
    loaded = load_recipe(recipe_file)
    recipe = loaded.recipe
    run = run or RunFolder(recipe.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    source = recipe.model.id
    renderer = load_renderer(recipe, source)
    dataset = prepare(recipe, renderer, run.data, Silent())
    hardware, architecture = hardware_for(recipe), find_architecture(source)
    base = BaseModel(source, None, architecture, renderer, hardware)
    plan = make_plan(recipe, architecture, RowStatistics.of(dataset), hardware)
    return TrainJob(recipe, recipe_file, base, dataset, plan, run)


def train_job(job: TrainJob, stop_at: int | None = None) -> TrainResult:
    """Train, and stop as after a signal; raises KeyboardInterrupt then."""
    stops = StopSignals(lambda _: None)

    def stop(step: int) -> None:
        if step == stop_at:
            stops.number = signal.SIGTERM

    return train(job, stops, Silent(stop))


# The steps


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
            attention = attention_name(model)
            del model
        for method in methods:
            try:
                _prove_method(proof, method, folder, attention, briefly=briefly)
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


def _prove_method(
    proof: Proof, method: str, folder: Path, attention: str, *, briefly: bool
) -> None:
    recipe = write_recipe(folder, method, attention=attention)
    with proof.step(f"{method} trains"):
        job = job_of(recipe)
        started = time.monotonic()
        result = train_job(job)
        _require(
            result.eval_loss is not None
            and result.first_eval_loss is not None
            and result.eval_loss < 0.995 * result.first_eval_loss,
            f"loss {result.first_eval_loss} → {result.eval_loss}",
        )
    with proof.step(f"{method} reloads"):
        finish_run(job, result, {}, time.monotonic() - started)
        opened = open_run(job.run.path)
        reloaded = load_tuned_model(opened)
        _require_equal_losses(result.trainer.model, reloaded.network)
    with proof.step(f"{method} gradients"):
        plain = _gradients(result)
        _require_gradients(result, plain, method)
    left_out = NOT_AGAIN.get(method, ())
    # Layers that run again would miss a prefix in the cache.
    if "checkpointing" not in left_out and method != "prefix-tuning":
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
    """Trained weights have a gradient, no others, and no router or tower is trained."""
    model = result.trainer.model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    idle = sorted(trained - {name for name, each in found.items() if bool(each.any())})
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
    parts = name.split(".lora_")[0].split(".")
    parent = model.get_submodule(".".join(parts[:-1]))
    experts = getattr(parent, "experts", None)
    counts = {each.shape[0] for each in experts.parameters() if each.ndim == 3} if experts else ()
    own: Any = getattr(parent, parts[-1], None)
    return getattr(own, "out_features", None) in counts


def _require_same_with_checkpointing(result: TrainResult, plain: dict[str, Tensor]) -> None:
    model = result.trainer.model
    model.gradient_checkpointing_enable()
    if not any(getattr(each, "gradient_checkpointing", False) for each in model.modules()):
        raise WrongError("transformers has no checkpointing for this class")
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
    torch.set_num_threads(1)
    gc.freeze()  # what the imports made; ftcli collects garbage between its stages


if __name__ == "__main__":
    main(sys.argv[1:])
