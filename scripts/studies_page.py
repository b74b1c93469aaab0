"""Write the tables of docs/benchmarks.md from what schedules.py and sound_merges.py have found.

python scripts/studies_page.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import schedules
import sound_merges
from kept_rows import read

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
DATA_NAMES = {
    "ecommerce_retail_demo": "product descriptions",
    "sql_wikisql_large": "questions to SQL",
    "instruct_dolly_short": "short instructions",
}


def main() -> None:
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def page(text: str) -> str:
    """The page with its marked parts made anew."""
    trainings = read(DOCS / "data" / "schedules.csv", schedules.Training)
    merges = read(DOCS / "data" / "merges.csv", sound_merges.Merged)
    parts = {
        "schedules": _table_of_schedules(trainings),
        "other methods": _table_of_methods(trainings),
        "merges": _table_of_merges(merges),
    }
    for name, lines in parts.items():
        begin, end = f"<!-- begin: {name} -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        assert found, f"{PAGE.name} has no place for {name}"
        text = f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{rest.partition(end)[2]}"
    return text


def _table_of_schedules(trainings: Sequence[schedules.Training]) -> Iterator[str]:
    """LoRA: of each data and length the first setting, and how far each other one is from it."""
    first, *others = schedules.SETTINGS
    yield _row(["rows", "steps", "base", _name(first), *map(_name, others)])
    yield _row(["---", "---:", "---:", "---:", *["---"] * len(others)])
    for length, data in ((length, data) for length in schedules.LENGTHS for data in DATA_NAMES):
        some = [
            each
            for each in trainings
            if (each.method, each.rate, each.data, each.length) == ("lora", "auto", data, length)
        ]
        best = _losses(some, first)
        cells = [DATA_NAMES[data], some[0].steps, some[0].first_loss, f"{mean(best.values()):.4f}"]
        for setting in others:
            losses = _losses(some, setting)
            apart = ", ".join(f"{losses[seed] - best[seed]:+.4f}" for seed in sorted(losses))
            cells.append(f"{mean(losses.values()):.4f} ({apart})")
        yield _row(cells)


def _table_of_methods(trainings: Sequence[schedules.Training]) -> Iterator[str]:
    """Each other method, or rate, under the first two settings."""
    settings = schedules.SETTINGS[:2]
    yield _row(["method", "rate", "base", *map(_name, settings), "difference"])
    yield _row(["---", "---", "---:", "---:", "---:", "---:"])
    for method, rate in schedules.OTHERS:
        some = [each for each in trainings if (each.method, each.rate) == (method, rate)]
        linear, cosine = (next(iter(_losses(some, each).values())) for each in settings)
        losses = [some[0].first_loss, f"{linear:.4f}", f"{cosine:.4f}", f"{cosine - linear:+.4f}"]
        yield _row([method, "its own" if rate == "auto" else rate, *losses])


def _losses(
    trainings: Iterable[schedules.Training], setting: schedules.Setting
) -> dict[str, float]:
    """Seed → loss behind the last step."""
    wanted = (setting.scheduler, str(setting.warmup_ratio), str(setting.shuffle))
    return {
        each.seed: float(each.loss)
        for each in trainings
        if (each.scheduler, each.warmup_ratio, each.shuffle) == wanted
    }


def _name(setting: schedules.Setting) -> str:
    warm_up = f", {setting.warmup_ratio:.0%} warm-up" if setting.warmup_ratio else ""
    order = "" if setting.shuffle else ", in file order"
    return f"{setting.scheduler}{warm_up}{order}"


def _table_of_merges(merges: Sequence[sound_merges.Merged]) -> Iterator[str]:
    """Of each model and method: how many were merged, how exactly, and what their types cost."""
    heads = ["model", "method", "rate", "merged", "furthest logit", "bf16 costs, nats", "stored as"]
    yield _row([*heads, "which costs at most"])
    yield _row(["---"] * 2 + ["---:"] * 4 + ["---"] + ["---:"])
    groups = dict.fromkeys((each.model, each.method, each.rate) for each in merges)
    for model, method, rate in groups:
        some = [
            each for each in merges if (each.model, each.method, each.rate) == (model, method, rate)
        ]
        passed = [each for each in some if each.verdict == "pass"]
        bf16 = sorted(float(each.bf16_loss_difference) for each in passed)
        types = Counter(each.dtype for each in passed)
        yield _row(
            [
                model,
                _method(method),
                rate,
                f"{len(passed)} of {len(some)}",
                f"{max(float(each.exact_max_logit_difference) for each in passed):.0e}",
                " to ".join(f"{each:+.4f}" for each in dict.fromkeys((bf16[0], bf16[-1]))),
                ", ".join(f"{name} ({count})" for name, count in types.items()),
                f"{max(float(each.loss_difference) for each in passed) + 0.0:+.4f}",
            ]
        )


def _method(written: str) -> str:
    return (
        "DoRA" if "dora" in written else {"lora": "LoRA", "qlora": "QLoRA"}[written.split('"')[3]]
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
