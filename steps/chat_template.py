"""Chat templates rendered as transformers renders them, without importing transformers.

A template comes with a model from a hub, so it is untrusted code: it runs in Jinja's sandbox.
What it may call is what https://huggingface.co/docs/transformers/chat_templating documents.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from steps.errors import DataError

Message = Mapping[str, Any]


class TemplateError(DataError):
    """The template does not render these messages, by its own word or by a fault in it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special tokens that it may name. Can be pickled."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token` and so on, as text."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> str:
        """The conversation as one text; with the header of the next assistant turn if asked for.

        Raises TemplateError where the template raises, or fails by a fault of its own.
        """
        import jinja2

        try:
            return str(
                _compiled(self.source).render(
                    messages=[_with_reasoning(message) for message in messages],
                    tools=tools or None,
                    documents=None,
                    add_generation_prompt=generation_prompt,
                    **self.special_tokens,
                )
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses it: {error}") from error
        except Exception as error:  # a template is a program of others: it can fail as any can
            raise TemplateError(
                f"the chat template fails: {type(error).__name__}: {error}"
            ) from error

    def check(self) -> None:
        """Raise DataError where the template cannot be compiled."""
        import jinja2

        try:
            _compiled(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template: line {error.lineno}: {error.message}") from error

    @functools.cached_property
    def header(self) -> str:
        """What opens an assistant turn: the generation prompt. Empty where there is none."""
        question = [{"role": "user", "content": "?"}]
        without = self.render(question)
        prompt = self.render(question, generation_prompt=True)
        return prompt.removeprefix(without) if prompt.startswith(without) else ""


def _with_reasoning(message: Message) -> Message:
    """Reasoning goes by three names; templates read the first or, for gpt-oss, the second."""
    names = ("reasoning_content", "thinking", "reasoning")
    given = next((message[name] for name in names if message.get(name) is not None), None)
    if given is None:
        return message
    return {"thinking": given, **message, "reasoning_content": given}


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words; here it only renders what is inside."""

        tags = {"generation"}  # noqa: RUF012  # Jinja reads it from the class

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """The statements between the tags."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    # trim_blocks and lstrip_blocks are transformers' settings; without them the white space differs.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)
