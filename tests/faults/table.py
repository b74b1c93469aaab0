"""The faults that ftcli must hold against: what is injected, and what must be seen.

Tests carry the numbers (`@pytest.mark.fault(7)`); `make faults` runs them and prints this table
with what they saw, and docs/faults.md is such a table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One line of the table, in words for people."""

    number: int
    group: str
    injected: str
    required: str


GROUPS: dict[str, dict[int, tuple[str, str]]] = {
    "Losing work": {
        1: (
            "kill -9 at every file operation of a save, and at random moments of a run",
            "resume ends with 0 and the very adapter of a run that nobody killed (sha256); "
            "checkpoints passed over are named",
        ),
        2: (
            "a file of a checkpoint deleted, cut, one bit flipped, or filled with NaN",
            "found by its hash; said loudly; the newest valid checkpoint is taken, never a silent "
            "new start",
        ),
        3: (
            "resume after learning rate, batch, rows, template or base have changed",
            "refused, with old → new for each",
        ),
        4: (
            "a higher-numbered checkpoint of another run; resume of a finished run",
            "another run's checkpoint is an error; a finished run says that it is finished",
        ),
        5: (
            "a full disk, before a training and at each write of a save",
            "one line, no half checkpoint, older ones whole; room is checked before step 1",
        ),
        6: (
            "SIGINT or SIGTERM in a step, in a validation, in a save, and twice",
            "the step is finished and saved, exit 130 or 143, resume bit-exact, never marked as "
            "finished",
        ),
        7: (
            "two runs on one folder; then the holder is killed",
            "the second ends within 5 s and names the holder; the lock frees itself",
        ),
    },
    "Wrong without an error": {
        8: (
            "merge of a QLoRA run: onto what it was trained on, onto the original, into 4 bits",
            "exact before rounding, else an exit code and no model; the original is measured; 4 "
            "bits are refused",
        ),
        9: (
            "merge of a LoRA run in fp32, bf16, fp16; tied ends; modules trained whole; reload",
            "before rounding no logit is more than 1e-3 off; what 16 bits cost is reported",
        ),
        10: (
            "rows longer than data.max_length: an answer fully or partly truncated",
            "counted, with row numbers; a row without answer is rejected; more than 1% of answer "
            "tokens lost ends with 1 unless data.too_long says truncate or drop",
        ),
        11: (
            "8 rows learnt by heart where the pad token is the end token",
            "8 of 8 answers stop; with the end token masked out the test fails",
        ),
        12: (
            "any conversation in any of several template families",
            "the labels decode to the answers with their stop tokens, and to nothing of a prompt",
        ),
        13: (
            "prompts in generate and eval, with a default system prompt in the template",
            "the token ids are those that the training rows begin with",
        ),
        14: (
            "texts that carry template tokens already; tokenizers that add BOS and EOS",
            "exactly one of each",
        ),
        15: (
            "NaN as loss, gradient or validation loss at step k",
            "stopped before the weights change, an exit code, the rows named, finite weights on "
            "disk",
        ),
        16: (
            "validation and eval in batches of 1, 2, 3 and 5 rows of uneven length",
            "within 1e-6 of a token-weighted loss by NumPy in float64",
        ),
        17: (
            "one batch as 4×1, 2×2 and 1×4 (micro-batch × accumulation), fp32, no dropout",
            "gradients and trained weights within 1e-6 of the largest",
        ),
        18: (
            "one row of a micro-batch changed, padded or packed; packing with virtual tokens",
            "its neighbours' logits and losses change by exactly 0; packing is refused with the "
            "reason",
        ),
        19: (
            "a typing error in one of several target modules",
            "refused: the ones that match nothing, each with the nearest real name",
        ),
        20: (
            "an adapter on another base of the same shape; keys missing from an adapter",
            "refused, by fingerprint",
        ),
        21: (
            "LoRA's arithmetic against NumPy in float64; an adapter whose B is 0",
            "within 1e-5; bit-equal to the base",
        ),
        22: ("the same recipe twice", "the same sha256 of what was trained"),
        33: (
            "full fine-tuning of a bf16 checkpoint at learning rate 2e-5",
            "fp32 master weights: all that have a gradient move; pure bf16 only when asked for, "
            "with a warning",
        ),
    },
    "Bad input": {
        23: (
            "recipes at random: unknown and doubled keys, 1e-4, no, 010, tabs, !!python/…, deep "
            "nesting, nothing at all",
            "exit 2 with file:line and key, never a traceback; 1e-4 works",
        ),
        24: (
            "CSV with NA, None, 02139, ragged rows, semicolons, quotes, line ends in fields, BOM",
            "values equal byte by byte, or an error with file:line",
        ),
        25: (
            "JSONL with bad UTF-8, cut lines, null, numbers as texts, late columns, nothing; a "
            "cut .gz",
            "a reason with file:line; accepted + rejected = read",
        ),
        26: (
            "ShareGPT roles, unknown roles, empty answers, a last turn that is the user's",
            "mapped, or the row is listed as bad",
        ),
        27: (
            "rows twice; validation rows that are trained on too",
            "read = accepted + rejected + duplicates; overlap with a validation file is an error "
            "unless allowed",
        ),
        28: (
            "control tokens written out in a user's text",
            "encoded as text, never as control tokens",
        ),
        32: (
            "the longest row comes last; memory runs out at step k or in a validation",
            "the longest is tried first; the run goes on in smaller micro-batches, its checkpoint "
            "kept",
        ),
    },
    "Security": {
        29: (
            "tokens in the environment and in the recipe",
            "found in no file that is written, and in no output",
        ),
        30: (
            "a pickle with a payload, remote code, an adapter's auto_mapping, an endless template",
            "nothing is run; ends within 10 s without a question",
        ),
        31: (
            "the hub out of reach during a save; a vocabulary that was resized",
            "a save needs no network; resized embeddings are saved",
        ),
        34: (
            "umask 022; an output folder that is, holds or lies in the base's",
            "all files 0644; the base is never touched",
        ),
    },
}
FAULTS = tuple(
    Fault(number, group, *texts)
    for group, lines in GROUPS.items()
    for number, texts in lines.items()
)
