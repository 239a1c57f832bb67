"""Build the documentation site in build/site; any warning is an error.

    pip install ".[docs]"
    python docs/build.py
    python -m http.server --directory build/site

The pages are those of docs/, and the README.md, CONTRIBUTING.md, CHANGELOG.md,
benchmarks/README.md and notebooks of the repository, so that nothing is written twice.
Notebooks keep their committed outputs. The API has the names of docs/names.md, in that
order.
"""

import base64
import functools
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from latex2mathml.converter import convert as latex_to_mathml

import trpo_jax

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
PAGES, SITE = BUILD / "pages", BUILD / "site"
SITE_LINK = "site:"  # marks links that are made here, from the root of the site
# Sections of benchmarks/README.md that are about time; the others are about returns.
SPEED = {
    "Peers",
    "Lower bounds",
    "Throughput",
    "Compiled for accelerators",
    "Curvature",
    "Options of the solve",
    "Scaling",
    "Runs",
    "Sweeps",
    "Optimisations tried",
}
# Sections of README.md; "Install and run" is on the front page, too.
FIRST_STEPS = {"Train in Python", "One update", "Your own environment"}
FIGURES = {"Results", "Speed", "Limits"}
PICTURES = {".gif", ".png", ".svg"}

LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*([^)\s]+)\s*\)")
BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def outside_code(text: str, function: Callable[[str], str]) -> str:
    """Apply a function to the parts of a Markdown text that are not code."""
    parts = CODE.split(text)
    parts[::2] = map(function, parts[::2])
    return "".join(parts)


def sections(text: str) -> tuple[str, dict[str, str]]:
    """Split a page into the part above its second-level headings, and the rest."""
    head, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return head, {part.partition("\n")[0]: f"## {part}" for part in parts}


def check_named(file: str, parts: dict[str, str], names: set[str]) -> None:
    """Stop if a section that is named here was renamed."""
    if missing := sorted(names - set(parts)):
        sys.exit(f"{file} has no sections {missing}")


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of all headings of a page."""
    prose = BLOCK.sub("", text)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


# --- texts of the repository


def link_to(room: str, name: str) -> str:
    """Return a link to the docstring of a name."""
    if name in trpo_jax.__all__:
        room = "trpo_jax"
    dotted = name if room == "trpo_jax" else f"{room}.{name}"
    return f"[`{name}`]({SITE_LINK}api/{room}.md#trpo_jax.{dotted})"


def names_by_room(text: str) -> dict[str, list[str]]:
    """Return the names in the tables of docs/names.md, by room, in their order."""
    names = {}
    for heading, part in sections(text)[1].items():
        cells = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        names[heading] = re.findall(r"`(\w+)`", " ".join(cells))
    names["trpo_jax"] = names.pop("Top level")
    return names


def link_names(text: str) -> str:
    """Link each name of docs/names.md to its docstring."""
    head, parts = sections(text)
    for room, part in parts.items():
        link = functools.partial(link_to, room)
        parts[room] = re.sub(
            r"^\| (`.*?) \|",
            lambda cell, link=link: re.sub(
                r"`(\w+)`", lambda name: link(name[1]), cell[0]
            ),
            part,
            flags=re.MULTILINE,
        )
    return head + "".join(parts.values())


def api(room: str, names: list[str]) -> str:
    """Return the page of a room: each of its names, by its docstring."""
    module = trpo_jax if room == "trpo_jax" else getattr(trpo_jax, room)
    dotted = module.__name__
    own, shared = [], []
    for name in names:
        (shared if room != "trpo_jax" and name in trpo_jax.__all__ else own).append(
            name
        )
    lines = [f"# {dotted}", module.__doc__.strip()]
    if shared:
        links = ", ".join(link_to(room, name) for name in shared)
        lines.append(f"These are names of the top level, too: {links}.")
    lines += [f"::: {dotted}.{name}" for name in own]
    return "\n\n".join(lines) + "\n"


def mathml(text: str) -> str:
    """Replace LaTeX by MathML, which browsers set without a script."""

    def formula(match: re.Match[str]) -> str:
        block, inline = match.groups()
        display = "block" if block else "inline"
        made = latex_to_mathml((block or inline).strip(), display=display)
        # Chromium draws no root sign with a font that is not for mathematics.
        made = made.replace("<msqrt>", "<mrow><mo>√</mo><mo>(</mo>")
        return made.replace("</msqrt>", "<mo>)</mo></mrow>")

    return outside_code(text, lambda part: FORMULA.sub(formula, part))


def notebook(path: Path) -> str:
    """Return an executed notebook as Markdown, and write its pictures."""
    parts = []
    pictures = PAGES / "notebooks"
    pictures.mkdir(exist_ok=True)
    number = 0
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(mathml(source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            kind = next((kind for kind in data if kind.startswith("image/")), None)
            if kind:
                number += 1
                name = f"{path.stem}-{number}.{kind.removeprefix('image/')}"
                (pictures / name).write_bytes(base64.b64decode(data[kind]))
                parts.append(
                    f"![output of the cell above]({SITE_LINK}notebooks/{name})"
                )
            else:
                text = output.get("text") or data["text/plain"]
                text = "".join(text).rstrip()
                parts.append(f'```{{ .text .output title="Output" }}\n{text}\n```')
    return "\n\n".join(parts) + "\n"


def texts() -> dict[str, tuple[str, str]]:
    """Return for each page of the site its text, and the file that this is from."""
    pages = {}
    for path in sorted((ROOT / "docs").glob("*.md")):
        pages[path.name] = (path.read_text("utf-8"), f"docs/{path.name}")
    names, _ = pages["names.md"]
    pages["names.md"] = (link_names(names), "docs/names.md")
    for room, listed in names_by_room(names).items():
        pages[f"api/{room}.md"] = (api(room, listed), f"trpo_jax/{room}")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        pages[name.lower()] = ((ROOT / name).read_text("utf-8"), name)

    # The front page: the head of README.md, the index of pages, and the figures.
    index, _ = pages.pop("README.md")
    readme = (ROOT / "README.md").read_text("utf-8")
    head, parts = sections(readme)
    check_named("README.md", parts, FIRST_STEPS | FIGURES)
    start = [part for name, part in parts.items() if name in FIRST_STEPS]
    pages["start.md"] = ("# First steps\n\n" + "".join(start), "README.md")
    install = parts.pop("Install and run")
    index = index.replace("# Documentation", "## Find your page", 1)
    # Its links are relative to docs/, those of README.md to the root.
    index = rewritten(index, lambda target: f"docs/{target}")
    figures = [part for name, part in parts.items() if name in FIGURES]
    front = head + install + index + "\n" + "".join(figures)
    pages["index.md"] = (front, "README.md")

    benchmarks = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    head, parts = sections(benchmarks)
    check_named("benchmarks/README.md", parts, SPEED)
    speed = [part for name, part in parts.items() if name in SPEED]
    results = [part for name, part in parts.items() if name not in SPEED]
    head = head.replace("# Benchmarks", "# Results", 1)
    pages["results.md"] = (head + "".join(results), "benchmarks/README.md")
    note = "Commands are on the page of [results](README.md).\n\n"
    pages["speed.md"] = (f"# Speed\n\n{note}{''.join(speed)}", "benchmarks/README.md")

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = (notebook(path), f"notebooks/{path.name}")
    return pages


# --- links


def rewritten(text: str, function: Callable[[str], str]) -> str:
    """Replace the relative links of a text; without a new target, by their label."""

    def replace(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if re.match(r"https?:|mailto:", target):
            return match[0]
        new = function(target)
        return f"{mark}[{label}]({new})" if new else label

    # A label may be code: only blocks are left out.
    parts = BLOCK.split(text)
    parts[::2] = (LINK.sub(replace, part) for part in parts[::2])
    return "".join(parts)


class Links:
    """Links between files of the repository, as links between pages of the site."""

    def __init__(self, pages: dict[str, tuple[str, str]]) -> None:
        """Collect the anchors of each page, and the pages that show each file."""
        self.file_of = {page: file for page, (_, file) in pages.items()}
        self.anchors = {page: anchors(text) for page, (text, _) in pages.items()}
        self.pages_of: dict[str, list[str]] = {"docs/README.md": ["index.md"]}
        for page, file in self.file_of.items():
            self.pages_of.setdefault(file, []).append(page)

    def page_of(self, file: str, anchor: str) -> str | None:
        """Return the page that shows an anchor of a file."""
        pages = self.pages_of.get(file, [])
        with_anchor = [page for page in pages if anchor in self.anchors[page]]
        if pages:
            return (with_anchor or pages)[0]
        if file == "trpo_jax":
            return "names.md"
        package, _, module = file.partition("/")
        room = module.partition("/")[0]
        api = f"api/{room}.md"
        return api if package == "trpo_jax" and api in self.anchors else None

    def target(self, page: str, link: str) -> str | None:
        """Return a link of a page as the site has it, None if it leads to no page."""
        here = os.path.dirname(page) or "."
        if link.startswith(SITE_LINK):
            return os.path.relpath(link.removeprefix(SITE_LINK), here)
        file = self.file_of[page]
        path, _, anchor = link.partition("#")
        if path:
            file = os.path.normpath(os.path.join(os.path.dirname(file), path))
        if not (ROOT / file).exists():
            sys.exit(f"{self.file_of[page]}: no file {link}")
        if Path(file).suffix in PICTURES:
            copy = PAGES / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy)
            return os.path.relpath(file, here)
        to = self.page_of(file, anchor)
        if to is None:
            return None
        return os.path.relpath(to, here) + (f"#{anchor}" if anchor else "")


class Page(html.parser.HTMLParser):
    """Anchors, links and loaded files of a built page."""

    def __init__(self, text: str) -> None:
        """Parse the page."""
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what a tag defines, links or loads."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values.get("id", ""), values.get("name", "")}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif values.get("rel") != "canonical" and tag in ("img", "link", "script"):
            self.loaded += [values[key] for key in ("src", "href") if key in values]


def faults(site: Path) -> Iterator[str]:
    """Yield broken links of the built pages, and files loaded from elsewhere."""
    pages = {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    del pages[site / "404.html"]  # its links are those of the root of a server
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.links + page.loaded:
            if re.match(r"(https?:)?//", link):
                if link in page.loaded:
                    yield f"{name} loads {link}"
                continue
            if link.startswith(("mailto:", "data:", "javascript:")):
                continue
            file, _, anchor = urllib.parse.unquote(link).partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name}: no file {link}"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{name}: no anchor {link}"


def main() -> None:
    """Assemble the pages, build the site, and check it."""
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    PAGES.mkdir(parents=True)
    pages = texts()
    links = Links(pages)
    for page, (text, _) in pages.items():
        path = PAGES / page
        path.parent.mkdir(exist_ok=True)
        path.write_text(rewritten(text, functools.partial(links.target, page)), "utf-8")
    shutil.copy(ROOT / "docs" / "style.css", PAGES)
    shutil.copy(ROOT / "docs" / "mkdocs.yml", BUILD)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run([*command, "-f", BUILD / "mkdocs.yml"], check=False)
    if built.returncode:
        sys.exit("the site does not build: see the warnings above")
    if found := sorted(set(faults(SITE))):
        sys.exit("\n".join(found))
    print(f"{len(pages)} pages in {SITE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
