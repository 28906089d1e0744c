"""Names of breakers and locks as options of the command line."""

from __future__ import annotations

from typing import Any

import click

LONGEST = 400  # characters; a store's keys are a little longer


class Name(click.ParamType):  # type: ignore[type-arg]  # generic in stubs only
    """A text of 1 to 400 characters: an empty one is mostly a variable of the shell that was not set."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; one that cannot be kept is a usage error."""
        text = str(value)
        if not text:
            self.fail("a name is not empty", param, ctx)
        if len(text) > LONGEST:
            self.fail(f"{text[:20]!r}... is longer than {LONGEST} characters", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text
