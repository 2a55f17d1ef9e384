"""Extensions of griffe: examples in docstrings become code, and axes of plots are optional."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


class Examples(griffe.Extension):
    """Put fences around lines that begin with `>>>`, which Markdown would quote."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


class OptionalAxes(griffe.Extension):
    """Show `ax: Axes | None = None` where the decorator `axes_optional` makes it so."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        if any(str(one.value).endswith("axes_optional") for one in func.decorators):
            axes = func.parameters[1]
            axes.annotation, axes.default = f"{axes.annotation} | None", "None"
