"""Makes the site of the repository as it lies: its pages and whatever they link to, under the same paths.

A hook of mkdocs (`make docs`): pages outside docs/ (README.md, configs/, examples/ ...) are pages of the site, a linked
file of another kind becomes a page that shows it, and a linked folder a list of what it holds. So links that work in
the repository work on the site, and mkdocs checks them all. `Docstrings` is an extension of griffe, which reads
the docstrings of the reference.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "configs/**/*.md", "examples/*.md", "launch/**/*.md")
SHOWN = (".py", ".sh", ".yaml", ".md")
"""What the list of a folder holds."""
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".json": "json", ".env": "bash"}
LINK = re.compile(r"(\]\()(?!https?:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Puts the repository's pages and what they link to in the place of the files of docs/."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(ROOT / "docs"):
            files.remove(file)
    for path in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        files.append(File.generated(config, name_of(path), abs_src_path=str(path)))
        for target in LINK.findall(path.read_text()):
            add(files, config, at(path.parent, target[1]))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links lead to the pages that show what they name."""
    here = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = at(ROOT / here, link[2])
        return link[0] if not target.exists() else link[1] + posixpath.relpath(shown_at(target), here or ".")

    return LINK.sub(led, markdown)


def at(folder: Path, target: str) -> Path:
    """What a link in `folder` names; symbolic links keep their own name."""
    return Path(os.path.normpath(folder / target))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shown_at(path: Path) -> str:
    """Where the site shows a file or a folder of the repository."""
    if path.is_dir():
        return name_of(path / ("README.md" if (path / "README.md").exists() else "index.md"))
    return name_of(path) if path.suffix == ".md" else f"{name_of(path)}.md"


def add(files: Files, config: Any, path: Path) -> None:
    """The page of a linked file that is none itself, or of a linked folder and of all that it lists."""
    if not path.exists() or path.suffix == ".md" or files.get_file_from_path(shown_at(path)):
        return
    if path.is_dir() and (path / "README.md").exists():
        return
    if path.is_file():
        files.append(File.generated(config, shown_at(path), content=page_of(path)))
        return
    held = sorted(one for one in path.rglob("*") if one.suffix in SHOWN)
    lines = [f"- [{one.relative_to(path).as_posix()}]({one.relative_to(path).as_posix()})" for one in held]
    files.append(File.generated(config, shown_at(path), content="\n".join([f"# {name_of(path)}/", "", *lines, ""])))
    for one in held:
        add(files, config, one)


def page_of(path: Path) -> str:
    """A file as a page: whole, or of a notebook (`# %%` parts cells) its text as text and its code as code."""
    text, language = path.read_text(), LANGUAGES.get(path.suffix, "text")
    if not text.startswith("# %%"):
        return f"# {path.name}\n\n`````{language}\n{text}`````\n"
    cells = [cell.partition("\n")[::2] for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]]
    return "\n\n".join(re.sub("^# ?", "", cell, flags=re.MULTILINE) if kind else f"```python\n{cell.strip()}\n```"
                       for kind, cell in cells)


class Docstrings(griffe.Extension):
    """Reads our docstrings as Google's: examples stand there without a heading, `a, b: [N] each` describes two."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^>>> .*(?:\n.+)*", "```pycon\n\\g<0>\n```", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"arXiv\s(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
            obj.docstring.value = re.sub(r"^  (\w+(?:, \w+)+):(.*(?:\n   .*)*)", each, text, flags=re.MULTILINE)


def each(described: re.Match[str]) -> str:
    return "\n".join(f"  {name}:{described[2]}" for name in described[1].split(", "))
