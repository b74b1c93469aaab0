"""What is looked at in the answers, beside whether they stop and how long they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftcli.metrics.answer import Answer
from ftcli.metrics.faithfulness import faithfulness_files, faithfulness_scorer
from ftcli.metrics.format import FormatScorer, format_files, format_scorer
from ftcli.metrics.looking import Looked, look
from ftcli.metrics.scorer import Question, ScoreKind, Scorer
from ftcli.metrics.text import TextScorer
from ftcli.stages.evaluate.asked import Asked
from ftcli.stages.evaluate.custom import custom_scorer
from ftcli.stages.evaluate.references import references
from ftcli.stages.opening import OpenRun

LOSS = ScoreKind("loss", "value", "lower")
PERPLEXITY = ScoreKind("perplexity", "value", "lower")
STOPS = ScoreKind("stops by itself", "share", "higher")
# Names beside the scores in what `--json` prints of a side.
FIGURES = ("perplexity", "prompt_tokens", "tokens_per_second")
LENGTH = ScoreKind("tokens an answer", "value", None)


class Scorers:
    """Every score of one evaluation."""

    def __init__(self, opened: OpenRun, asked: Asked) -> None:
        """Raises FtcliError where what the recipe or a flag names cannot be used."""
        wanted = opened.loaded.recipe.eval
        self._judges: list[Scorer] = []
        self._form: FormatScorer | None = None
        self._wanted = wanted.faithfulness
        self._by_words: Scorer | None = None
        self.files: list[Path] = []
        """What the scores depend on besides recipe and answers."""
        if wanted.format is not None:
            self.files += format_files(wanted.format, opened.loaded.base)
            self._form = format_scorer(wanted.format, opened.loaded.base)
            self._judges.append(self._form)
        if wanted.faithfulness is not None:
            self.files += faithfulness_files(wanted.faithfulness, opened.loaded.base)
            self._by_words = faithfulness_scorer(wanted.faithfulness, opened.loaded.base)
            self._judges.append(self._by_words)
        self._judges.append(TextScorer())
        if asked.scores is not None:
            self._judges.append(custom_scorer(asked.scores, {*self.kinds, *FIGURES}))

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """Every score in the order in which it is shown."""
        found = {"loss": LOSS, "stop_rate": STOPS}
        for judge in self._judges:
            found |= judge.kinds
        return {**found, "answer_tokens": LENGTH}

    def warnings(self) -> list[str]:
        """What keeps scores from being there at all, once the answers were looked at."""
        return self._form.warnings() if self._form is not None else []

    def references(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What the rows' own answers score, where a score needs that beside it."""
        if self._wanted is None or self._by_words is None:
            return {}
        return references(self._wanted, self._by_words, questions)

    def look(
        self, answers: Sequence[Answer], questions: Sequence[Question], moved: Callable[[int], None]
    ) -> Looked:
        """What every judge says of one side's answers; `moved` is told how many are done."""
        return look(self._judges, answers, questions, moved)
