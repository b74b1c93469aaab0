"""JSON Schemas of what each command prints with --json: names that scripts rely on."""

from __future__ import annotations

from typing import Any

from ftcli.runs.results import EvalResult

COUNT = {"type": "integer", "minimum": 0}
NUMBER = {"type": "number"}
TEXT = {"type": "string"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
INTERVAL = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with exactly these fields."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def measured(*names: str, kind: dict[str, Any]) -> dict[str, Any]:
    """Each score with its interval."""
    fields: dict[str, Any] = {}
    for name in names:
        fields |= {name: kind, f"{name}_interval": INTERVAL}
    return fields


FAULT = record({"file": TEXT, "line": COUNT, "reason": TEXT})
# Scores that the recipe or a file of the user's asks for are next to the scores of every run.
SIDE: dict[str, Any] = {"type": "object", "additionalProperties": {"anyOf": [NUMBER, INTERVAL]}}


def evaluation() -> dict[str, Any]:
    """The shape of the result class, with every side's scores by name."""
    shape = EvalResult.model_json_schema(mode="serialization")
    sides = {"run_dir": TEXT, "base": SIDE, "prompted": SIDE, "tuned": SIDE}
    properties = shape["properties"] | sides
    return {**shape, "properties": properties, "required": [*shape["required"], "tuned"]}


VERDICTS = ["pass", "mismatch allowed", "nothing to merge"]
EXACT = record(
    {"kl": NUMBER, "max_logit_difference": NUMBER, "limit": NUMBER}
    | {"compared_in": {"enum": ["float32", "float64"]}}
)
ALLOWED = record({"kl": NUMBER, "top1_agreement": SHARE})
ROUNDING = record(
    {"dtype": TEXT, "kl": NUMBER, "top1_agreement": SHARE, "shows": {"type": "boolean"}}
    | {"loss_before": NUMBER, "loss": NUMBER, "loss_difference": NUMBER}
    | {"loss_difference_interval": INTERVAL}
)
SIZES = ("weights", "quantization", "adapter", "gradients", "optimizer", "activations")
SIZES += ("logits", "workspace", "context")
PHASES = ("end of forward", "head and loss", "backward of one layer", "end of backward")
PHASES += ("optimizer step",)
FIGURES = dict.fromkeys(
    ("peak_bytes", "reserved_bytes", "device_bytes", "low_bytes", "high_bytes"), COUNT
)
SIZE = {"enum": ["max-length", "micro-batch", "rank"]}
CARD = {"card": TEXT, "usable_bytes": COUNT}
FIT = record(CARD | {"fits": {"const": True}, "choices": {"type": "object"}} | FIGURES)
NAME_OR_NONE = {"type": ["string", "null"]}
INSTEAD = record({"card": NAME_OR_NONE, "model": NAME_OR_NONE})
SUGGESTION = record(
    {"change": TEXT, "cost": TEXT, "key": {"type": "string", "pattern": r"^[a-z]+\.[a-z_]+$"}}
    | {"value": {"type": ["string", "number", "boolean", "array"]}}
    | {"device_bytes": COUNT, "high_bytes": COUNT}
)
INTERVAL = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}
TIME = record(
    {
        "tokens_per_second": NUMBER,
        "tokens_per_second_interval": INTERVAL,
        "seconds_per_step": NUMBER,
        "tokens_per_step": COUNT,
        "bound_by": {"enum": ["products", "memory", "launches", "copies"]},
        "seconds": {"type": ["number", "null"]},
    },
    {"seconds_interval": INTERVAL, "cost": NUMBER, "cost_interval": INTERVAL},
)
SWEEP_ROW = record({"value": COUNT, "fits": {"type": ["boolean", "null"]}} | FIGURES)

METHOD = {"enum": ["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]}
NUMBER_OR_NONE = {"type": ["number", "null"]}
SCORES = {
    "type": "object",
    "additionalProperties": record({"value": NUMBER, "interval": INTERVAL, "n": COUNT}),
    "required": ["loss", "general_text"],
}
LOSS_DIFFERENCE = record(
    {
        "value": NUMBER,
        "interval": INTERVAL,
        **dict.fromkeys(("n", "rows_better", "rows_worse"), COUNT),
        "p_value": SHARE,
        "verdict": {"enum": ["better", "worse", "not significant", "too few rows"]},
    }
)
LOSS_DIFFERENCE_OR_NONE = {"oneOf": [LOSS_DIFFERENCE, {"type": "null"}]}
COMPARED = {
    "oneOf": [
        record(
            {
                "state": {"const": "finished"},
                "name": TEXT,
                "method": METHOD,
                "learning_rate": NUMBER,
                **{key: {"type": "boolean"} for key in ("four_bit", "chosen", "resumed")},
                "run_dir": TEXT,
                "evaluation": TEXT,
                "validation_loss": NUMBER_OR_NONE,
                "scores": SCORES,
                "vs_base": LOSS_DIFFERENCE_OR_NONE,
                "vs_best": LOSS_DIFFERENCE_OR_NONE,
                **dict.fromkeys(("steps", "trainable_parameters", "total_parameters"), COUNT),
                **dict.fromkeys(("peak_memory_bytes", "saved_bytes"), COUNT),
                "tokens_per_second": NUMBER_OR_NONE,
                "seconds": NUMBER,
            }
        ),
        record(
            {"state": {"const": "failed"}, "name": TEXT, "method": METHOD}
            | {"code": TEXT, "reason": TEXT}
        ),
    ]
}

OBJECT_OR_NONE = {"type": ["object", "null"]}
STATISTICS = ("near_duplicates", "format", "same_prompt_different_answers", "lengths")
ADVICE = record(
    dict.fromkeys((*STATISTICS, "instruction", "prompting"), OBJECT_OR_NONE)
    | {
        "rows": COUNT,
        "verdict": {"enum": ["prompt", "fine-tune", "fine-tune if called often"]},
        "sentences": {"type": "array", "items": TEXT, "minItems": 1},
    }
)
COST = record(
    {
        "per_hour": NUMBER,
        "run": record(
            {"tokens": COUNT, "tokens_per_second": NUMBER, "measured": TEXT}
            | {"seconds": NUMBER, "cost": NUMBER}
        ),
        "call": OBJECT_OR_NONE,
        "calls_to_pay_back": {"type": ["integer", "null"]},
        "sentences": {"type": "array", "items": TEXT},
    }
)

SHAPES: dict[str, dict[str, Any]] = {
    "prepare": record(
        {
            **dict.fromkeys(("rows_read", "rows_accepted", "rows_rejected", "duplicates"), COUNT),
            **dict.fromkeys(("overlap", "train_rows", "validation_rows", "test_rows"), COUNT),
            **dict.fromkeys(("train_tokens", "label_tokens", "answer_tokens_lost"), COUNT),
            "empty_columns": {"type": "object", "additionalProperties": COUNT},
            **dict.fromkeys(("replay_rows", "replay_tokens"), COUNT),
            "replay_source": {"type": ["string", "null"]},
            "longest_row": record({"file": TEXT, "line": COUNT, "tokens": COUNT}),
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
            "rejected": {"type": "array", "items": FAULT},
            "preview": {"type": "array"},
            "run_dir": TEXT,
            "advice": ADVICE,
        },
        {"cost": COST},
    ),
    "estimate-vram": record(
        {
            **FIGURES,
            "managed_bytes": COUNT,
            "based_on": TEXT,
            "breakdown": record(dict.fromkeys(SIZES, COUNT), {"l2_sp": COUNT}),
            "peak_phase": {"enum": list(PHASES)},
            "phases": record(dict.fromkeys(PHASES, COUNT)),
            "timeline": record(
                dict.fromkeys(PHASES, record(dict.fromkeys(SIZES[:-1], COUNT), {"l2_sp": COUNT})),
            ),
            "moments": record(
                dict.fromkeys(("validation", "answers", "merge_on_cpu", "ram"), COUNT)
            ),
            "trainable_parameters": COUNT,
            "total_parameters": COUNT,
            "fits": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "fits_upper_bound": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "assumptions": {"type": "object"},
            "textbook": {"type": "array"},
            "suggestions": {"type": "array", "items": SUGGESTION},
        },
        {
            "fit": {"oneOf": [FIT, record(CARD | {"fits": {"const": False}, "instead": INSTEAD})]},
            "written": TEXT,
            "max": {
                "oneOf": [
                    record(
                        {"size": SIZE, "value": {"type": "integer", "minimum": 1}} | FIGURES,
                        {
                            key: {"const": True}
                            for key in ("embedding_offload", "activation_offload", "tiled_mlp")
                        },
                    ),
                    record({"size": SIZE, "value": {"type": "null"}}),
                ]
            },
            "sweep": record({"size": SIZE, "rows": {"type": "array", "items": SWEEP_ROW}}),
            "time": TIME,
        },
    ),
    "train": record(
        {
            "run_dir": TEXT,
            "trained": {"type": "boolean"},
            "state": {"const": "finished"},
            "steps": COUNT,
            "train_loss": {"type": ["number", "null"]},
            "eval_loss": {"type": ["number", "null"]},
            "first_eval_loss": {"type": ["number", "null"]},
            "best_step": {"type": ["integer", "null"]},
            "tokens_per_second": NUMBER,
            "trainable_parameters": COUNT,
            "total_parameters": COUNT,
            "peak_memory_bytes": COUNT,
            **dict.fromkeys(("saved_bytes", "checkpoint_bytes"), COUNT),
            "stop_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "stop_rate_rows": COUNT,
            "training_seconds": NUMBER,
            "seconds": NUMBER,
        }
    ),
    "eval": evaluation(),
    "compare": record(
        {
            **dict.fromkeys(("run_dir", "recipe", "model", "verdict"), TEXT),
            "steps": {"type": ["integer", "null"]},
            **dict.fromkeys(("seed", "rows"), COUNT),
            "data": {"enum": ["test", "validation"]},
            "general_text": NAME_OR_NONE,
            "base": record({"four_bit": {"type": "boolean"}, "scores": SCORES}),
            "cells": {"type": "array", "items": COMPARED},
            "take": NAME_OR_NONE,
            "among": {"type": "array", "items": TEXT},
        }
    ),
    "merge": record(
        {"output": TEXT, "verdict": {"enum": VERDICTS}, "bytes": COUNT},
        {
            "kl": NUMBER,
            "top1_agreement": SHARE,
            "max_logit_difference": NUMBER,
            "tokens": COUNT,
            "exact": EXACT,
            "rounding": ROUNDING,
            "other_types": {"type": "array", "items": ROUNDING},
            "largest_activation": NUMBER,
            "mismatch": {"oneOf": [{"type": "null"}, ALLOWED]},
            "base": {"enum": ["base", "dequantized", "original"]},
            "rows": COUNT,
            "dtype": TEXT,
            "dtype_reason": TEXT,
        },
    ),
    "generate": {
        "oneOf": [
            record({"prompt": TEXT, "answer": TEXT, "stopped": {"type": "boolean"}}),
            record({"output": TEXT, "rows": COUNT, "answered_before": COUNT, "rejected": {}}),
        ]
    },
    "error": record(
        {
            "error": record(
                {
                    "code": TEXT,
                    "message": TEXT,
                    "file": {"type": ["string", "null"]},
                    "line": {"type": ["integer", "null"]},
                }
            )
        }
    ),
}
