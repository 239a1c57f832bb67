"""Set the equations and the shapes of docstrings, on the site."""

import re

import griffe

# A paragraph is an equation if it has a relation and few words, and does not begin like
# a sentence, a list or a section.
RELATION = re.compile(r"[=≤≥≈↦]")
BEGINNING = re.compile(r"[A-Z][a-z]|with |[ `(-]")
WORD = re.compile(r"[A-Za-z]{4,}")


def is_equation(paragraph: str) -> bool:
    """Return whether a paragraph of a docstring is an equation."""
    if not RELATION.search(paragraph) or BEGINNING.match(paragraph):
        return False
    tokens = paragraph.split()
    words = [token for token in tokens if WORD.fullmatch(token.strip(".,;:()"))]
    return len(words) < len(tokens) / 3


def set_equations(text: str) -> str:
    """Return a docstring with its equations as blocks, and the star of shapes [*N]."""
    paragraphs = text.replace("[*", r"[\*").split("\n\n")
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
