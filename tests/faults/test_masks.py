"""Labels are the answers with their stop tokens, and nothing of a prompt, in any conversation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import BUILDERS, CONTENTS, chat, family_named, runs, trained_text

exchanges = st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=4)


@pytest.mark.fault(12)
@pytest.mark.parametrize("name", BUILDERS)
def test_labels_are_the_answers_with_their_ends(
    name: str, complete: bool, observed: Callable[[str], None]
) -> None:
    family = family_named(name)
    answers_seen = 0

    @settings(max_examples=1000 if complete else 40, deadline=None)
    @given(turns=exchanges, system=st.none() | CONTENTS)
    def holds(turns: list[tuple[str, str]], system: str | None) -> None:
        nonlocal answers_seen
        given_system = [] if system is None or not family.takes_system else [f"system: {system}"]
        if name == "mistral" and len(turns) > 1:
            given_system = []  # its template moves the system prompt: such rows are refused
        example = chat(*given_system, *(text for turn in turns for text in turn))
        answers = [answer for _, answer in turns]
        last = family.renderer("last").encode(example)
        assert trained_text(family.tokenizer, last) == family.trained(answers[-1])
        every = family.renderer("answer").encode(example)
        assert every.input_ids == last.input_ids
        found = [family.tokenizer.decode(labels) for labels in runs(every)]
        assert found[-1] == family.trained(answers[-1])
        # White space before an earlier answer may share a token with the template's own.
        assert [text.strip() for text in found] == [family.trained(a).strip() for a in answers]
        answers_seen += len(answers)

    holds()
    observed(f"{name}: {answers_seen:,} answers exact")
