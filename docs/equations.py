"""Set the equations of docstrings as blocks, on the site."""

import re

import griffe

# A paragraph is an equation if it has a relation, does not begin like a sentence, and
# has few words.
RELATION = re.compile(r"[=≤≥≈↦∈]|max_|min_")
WORD = re.compile(r"[A-Za-z]{4,}")


def is_equation(paragraph: str) -> bool:
    """Return whether a paragraph of a docstring is an equation."""
    if not RELATION.search(paragraph) or paragraph.startswith((" ", "- ", "`")):
        return False
    tokens = paragraph.split()
    words = [token for token in tokens if WORD.fullmatch(token.strip(".,;:()"))]
    return len(words) < len(tokens) / 3


def set_equations(text: str) -> str:
    """Return a docstring with its equations as blocks of code."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"```text\n{paragraph}\n```" if is_equation(paragraph) else paragraph
        for paragraph in paragraphs
    )


class Equations(griffe.Extension):
    """Extension of mkdocstrings that sets equations."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Set the equations of one docstring."""
        if obj.docstring:
            obj.docstring.value = set_equations(obj.docstring.value)
