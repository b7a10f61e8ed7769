"""Docstrings, written for editors and doctest, as Markdown for the site."""

import re

import griffe

ROLE = re.compile(r":\w+:`(~?)([^`]+)`")
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
"""From a prompt to an empty line."""


class Docstrings(griffe.Extension):
    """Rewrites every docstring that is shown."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles and literals as code, examples and displayed equations as blocks of it."""
    text = ROLE.sub(_code, text).replace("``", "`")
    text = re.sub(r"::\n\n", ":\n\n", text)
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```", text)


def _code(found: re.Match[str]) -> str:
    short, name = found.groups()
    return f"`{name.rpartition('.')[2] if short else name}`"
