"""The chat template of a model: its own, the recipe's, or the plain default."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ftcli.config.data import DEFAULT, ENDS, Template, builtin_template, find_template
from ftcli.config.recipe import Recipe
from ftcli.data.sources import format_of
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import DataError, ModelError
from ftcli.shell import shown_path, shown_source


def choose_template(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> str | None:
    """Give the tokenizer the recipe's template, or the plain one if it has none.

    Plain texts need none. Returns a note on an unusual choice, if any; raises as `set_template`.
    """
    data, own = recipe.data, tokenizer.chat_template
    model = shown_source(recipe.model.id)
    if data.template is not None:
        set_template(tokenizer, find_template(data.template))
        if not own or own == tokenizer.chat_template:
            return None
        return f"note: data.template replaces {model}'s own chat template"
    if own or format_of(data) == "text":
        return None
    set_template(tokenizer, builtin_template(DEFAULT))
    return (
        f"note: {model} has no chat template; conversations use the plain one "
        "(docs/templates.md), unless data.template names another"
    )


def set_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Give the tokenizer a template; built-in ones begin with BOS if its texts do.

    Raises ModelError if the tokenizer lacks the token that ends an answer, and DataError if the
    template does not compile or exceeds its limits.
    """
    text = template.text
    if template.name is not None:
        _require_end(tokenizer, template.name)
        if _begins_texts(tokenizer):
            text = "{{- bos_token }}" + text
    tokenizer.chat_template = text
    file = f" ({shown_path(template.file)})" if template.file is not None else ""
    error = Renderer(tokenizer, template_name=f"data.template{file}").syntax_error()
    if error is None:
        return
    line, reason = error
    if template.file is None:
        raise DataError("template", f"does not compile, line {line} of it: {reason}")
    raise DataError(
        "template",
        f"data.template does not compile: {reason}",
        file=shown_path(template.file),
        line=line,
    )


def _require_end(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    end = ENDS[name]
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if end is not None and end not in known:
        raise ModelError(
            "template",
            f"{name} ends answers with {end}, which is not a token of this model, so that it would "
            f"not learn to stop; take {DEFAULT}",
        )


def _begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts BOS before a text."""
    first, bos = tokenizer("a")["input_ids"][:1], tokenizer.bos_token_id
    return bos is not None and first == [bos]
