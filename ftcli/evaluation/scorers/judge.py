"""`eval.judge`: a language model at an OpenAI-compatible URL checks every answer.

One request per answer with its facts; the reply is a JSON verdict. Verdicts are stored by content,
so that a stopped evaluation resumes and no answer is paid for twice. Agreement with the user's
labels shows how far to trust the judge, or a detector.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.config.evaluation import Grounding, Judge
from ftcli.console import counted, shown_path
from ftcli.errors import DataError, MachineError
from ftcli.evaluation.scorers.facts import facts_text
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.evaluation.statistics import wilson_interval
from ftcli.runs.atomic import append_json, read_json_lines

Verdict = dict[str, Any]
SUPPORTED = ScoreKind("supported (judge)", "share", "higher")
PREFERRED = ScoreKind("preferred (judge)", "share", "higher")
VERDICTS = "judge.jsonl"
# Attempts per request: busy (429, 5xx) and slow servers are asked again.
ATTEMPTS, MAX_WAIT_SECONDS = 5, 60.0
# A reply without a verdict counts for no side; this many in a row end the evaluation.
MAX_REFUSALS_IN_A_ROW = 5
MIN_LABELS = 20
LABELS_KEYS = {"detector": "eval.grounding.labels", "judge": "eval.judge.labels"}
CheckerName = Literal["detector", "judge"]
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OBJECT = re.compile(r"\{.*\}", re.DOTALL)
TASK = """\
You check an answer against the facts it was written from.
{rubric}
Reply with one JSON object and nothing else: {{"supported": true or false, "quote": "the words of \
the answer that are not supported, copied exactly; empty if all are"}}"""
PAIR_TASK = """\
You compare two answers to the same request.
{rubric}
Reply with one JSON object and nothing else: {{"better": "A", "B" or "tie"}}"""


@dataclass(frozen=True)
class Request:
    """A request; its verdict is stored under its key."""

    system: str
    user: str
    model: str

    @property
    def key(self) -> str:
        parts = json.dumps([self.model, self.system, self.user])
        return hashlib.sha256(parts.encode()).hexdigest()[:24]


class JudgeScorer:
    """Scores answers by a server's verdicts, which `fetch` gets."""

    def __init__(self, wanted: Judge, folder: Path) -> None:
        """`folder`: where verdicts are stored, as `judge.jsonl`."""
        self._wanted = wanted
        self._file = folder / VERDICTS
        self._verdicts: dict[str, Verdict | None] = {
            line["key"]: line["verdict"] for line in read_json_lines(self._file)
        }
        self.without_verdict = 0
        """Answers for which the server gave no verdict."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        kinds = {"judge_supported": SUPPORTED}
        return kinds | {"judge_preferred": PREFERRED} if self.compares else kinds

    @property
    def compares(self) -> bool:
        """Whether it is also asked which of base and tuned answer is better."""
        return self._wanted.pairwise

    def fetch(self, requests: Sequence[Request], on_progress: Callable[[int], None]) -> None:
        """Get the missing verdicts; raises MachineError (`judge_unreachable`)."""
        missing = {each.key: each for each in requests if each.key not in self._verdicts}
        stored = len(requests) - len(missing)
        on_progress(stored)
        refused = 0
        # An error or Ctrl-C does not wait for requests in flight: the threads are daemons.
        with ThreadPool(self._wanted.parallel) as pool:
            replies = pool.imap_unordered(self._ask, missing.values())
            for number, (request, verdict) in enumerate(replies, start=1):
                refused = 0 if verdict else refused + 1
                if refused > MAX_REFUSALS_IN_A_ROW:
                    raise self._error("replies without the JSON object that it is asked for")
                self._verdicts[request.key] = verdict
                append_json(self._file, {"key": request.key, "verdict": verdict})
                on_progress(stored + number)

    def supported_request(self, answer: str, question: Question) -> Request:
        system = TASK.format(rubric=self._wanted.rubric)
        user = f"Facts:\n{question.facts}\n\nAnswer:\n{answer}"
        return Request(system, user, self._wanted.model)

    def pair_request(self, base: str, tuned: str, question: Question) -> tuple[Request, bool]:
        """Also whether the tuned answer is A: a hash of both decides the order."""
        first = hashlib.sha256(f"{base}\n{tuned}".encode()).digest()[0] % 2 == 0
        one, other = (tuned, base) if first else (base, tuned)
        system = PAIR_TASK.format(rubric=self._wanted.rubric)
        user = f"Request:\n{question.prompt}\n\nAnswer A:\n{one}\n\nAnswer B:\n{other}"
        return Request(system, user, self._wanted.model), first

    def score(self, answer: str, question: Question) -> ExampleResult:
        verdict = self.verdict(answer, question)
        if verdict is None:
            self.without_verdict += 1
            return ExampleResult({})
        if verdict:
            return ExampleResult({"judge_supported": (1.0, 1.0)})
        found = self._verdicts[self.supported_request(answer, question).key] or {}
        quote = str(found.get("quote") or "")
        start = answer.find(quote) if quote else -1
        place = (start, start + len(quote)) if start >= 0 else (None, None)
        finding = Finding("not supported (judge)", quote or "no words were quoted", *place)
        return ExampleResult({"judge_supported": (0.0, 1.0)}, (finding,))

    def verdict(self, answer: str, question: Question) -> bool | None:
        """Whether the answer is supported; None: no verdict."""
        found = self._verdicts.get(self.supported_request(answer, question).key)
        return bool(found["supported"]) if found and "supported" in found else None

    def notes(self) -> Iterator[str]:
        """Below the table."""
        if self.without_verdict:
            yield f"the judge gave no verdict on {counted(self.without_verdict, 'answer')}"

    def preferred(self, base: str, tuned: str, question: Question) -> float | None:
        """1: the tuned answer is preferred, 0: the base's, 0.5: a tie; None: no verdict."""
        request, tuned_is_a = self.pair_request(base, tuned, question)
        better = str((self._verdicts.get(request.key) or {}).get("better", "")).strip().upper()
        if better not in ("A", "B", "TIE"):
            return None
        return 0.5 if better == "TIE" else float((better == "A") == tuned_is_a)

    def _ask(self, request: Request) -> tuple[Request, Verdict | None]:
        """With its verdict; None if two replies have none."""
        first = _read_verdict(self._reply(request))
        return request, first or _read_verdict(self._reply(request))

    def _reply(self, request: Request) -> str:
        body = {
            "model": request.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._wanted.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self._wanted.url.rstrip('/')}/chat/completions"
        asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
        why = ""
        for attempt in range(ATTEMPTS):
            wait = min(2.0**attempt, MAX_WAIT_SECONDS)
            try:
                timeout = self._wanted.timeout_seconds
                with urllib.request.urlopen(asked, timeout=timeout) as response:
                    found = json.loads(response.read())
                    return str(found["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                why = f"answered {error.code} {error.reason}"
                if error.code not in RETRIED:
                    raise self._error(why) from error
                wait = _retry_after(error) or wait
            except (OSError, ValueError, LookupError, TypeError) as error:
                why = f"cannot be used ({error})"
            if attempt < ATTEMPTS - 1:
                time.sleep(wait)
        raise self._error(f"{why}, {ATTEMPTS} times")

    def _error(self, why: str) -> MachineError:
        return MachineError(
            "judge_unreachable",
            f"eval.judge: {self._wanted.url} {why}; verdicts so far are kept; the same command "
            "resumes",
        )


def _read_verdict(reply: str) -> Verdict | None:
    """The JSON object within a reply."""
    found = OBJECT.search(reply)
    try:
        verdict = json.loads(found[0]) if found else None
    except ValueError:
        return None
    if isinstance(verdict, dict) and (
        isinstance(verdict.get("supported"), bool) or "better" in verdict
    ):
        return verdict
    return None


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds to wait, if the server says so (RFC 9110, section 10.2.3)."""
    try:
        return min(float(error.headers.get("Retry-After", "")), MAX_WAIT_SECONDS)
    except ValueError:
        return None


class Label(BaseModel):
    """The user's label: whether the prompt supports the answer."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: str
    answer: str
    supported: bool

    def question(self, grounding: Grounding | None) -> Question:
        return Question(self.prompt, "", facts_text(grounding, self.prompt))


def read_labels(file: Path) -> list[Label]:
    """JSON lines. Raises DataError (`labels`)."""
    try:
        # Not `splitlines`: an answer may contain U+2028.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError("labels", f"labels: {why}", file=shown_path(file)) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Label.model_validate_json(line))
        except ValidationError as error:
            message = 'expected {"prompt": "…", "answer": "…", "supported": true or false}'
            raise DataError("labels", message, file=shown_path(file), line=number) from error
    if not found:
        raise DataError("labels", "has no label", file=shown_path(file))
    return found


def agreement(
    checker: CheckerName, labels: Sequence[Label], verdicts: Sequence[bool | None]
) -> str:
    """`the judge agrees with 18 of 20 of your labels (70 to 97%)`, and how many it finds."""
    if not labels:
        return (
            f"how often the {checker} is right on your task is not known: label {MIN_LABELS} "
            f"answers ({LABELS_KEYS[checker]})"
        )
    pairs = [(label.supported, each) for label, each in zip(labels, verdicts, strict=True)]
    known = [(label, each) for label, each in pairs if each is not None]
    if not known:
        return f"the {checker} gave no verdict on your {counted(len(labels), 'labelled answer')}"
    agreed = sum(label == each for label, each in known)
    low, high = wilson_interval(agreed, len(known))
    wrong = [each for label, each in known if not label]
    words = f"the {checker} agrees with {agreed} of {len(known)} of your labels"
    words += f" ({low:.0%} to {high:.0%})"
    if wrong:
        words += f"; it finds {wrong.count(False)} of {len(wrong)} that you call unsupported"
    if len(known) < MIN_LABELS:
        words += f"; label at least {MIN_LABELS}"
    return words
