"""What the pages name exists: links, files, functions, verbs, error texts; worked diffs apply, plug-ins work."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.cli.verbs import VERBS
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.load import load_examples
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.plugins import load_function

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted((ROOT / "docs").rglob("*.md")),
         *(ROOT / name for name in ("README.md", "benchmarks/README.md", "examples/README.md")),
         *sorted((ROOT / "configs").rglob("README.md"))]
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ROOMS = "|".join(sorted(path.name for path in (ROOT / "rlhf_jax").iterdir() if path.is_dir()))
FOREIGN = {"RESOURCE_EXHAUSTED"}
"""Error texts that are not ours."""


def named(path):
    return str(path.relative_to(ROOT))


def diffs(text):
    return re.findall(r"^```diff\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(path):
    """A page without its diffs, which name what is not there yet."""
    text = path.read_text()
    for diff in diffs(text):
        text = text.replace(diff, "")
    return text


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", prose(page)):
        name, _, place = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_functions_and_verbs_that_a_page_names_exist(page):
    text = prose(page)
    made = set(re.findall(r"^\+\+\+ b/(\S+)$", page.read_text(), re.MULTILINE))
    for name in re.findall(r"(?<![\w/.])((?:rlhf_jax|tests|benchmarks|docs|launch)/[\w/.-]+\.(?:py|md|yaml))", text):
        assert (ROOT / name).exists() or name in made, name
    for name in re.findall(rf"`((?:{ROOMS})/[a-z_/]+\.py)`", text):
        assert (ROOT / "rlhf_jax" / name).exists(), name
    for name in set(re.findall(r"\brlhf_jax(?:\.\w+)+(?::\w+)?", text)):
        assert found(name.replace(":", ".").removesuffix(".py")), name
    added = re.findall(r'^\+    "(\w+)": Verb\(', page.read_text(), re.MULTILINE)
    for verb in re.findall(r"\brlhf-jax ([a-z]\w*)", text):
        assert verb in (*VERBS, *added), verb


def found(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part, None)
        return thing is not None
    return False


@pytest.mark.parametrize("page", DOCS, ids=named)
def test_lines_are_at_most_120_columns_outside_tables_and_code(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []


def test_the_worked_diffs_apply_one_after_the_other():
    for path, lines in files_after(diffs(EXTENDING)).items():
        if path.suffix == ".py":
            ast.parse("\n".join(lines), str(path))


def files_after(worked):
    """Path -> lines of each file that these diffs change, one after the other.

    Lines without a sign and with a minus stand in the file as they are, one below the other; @@ parts hunks.
    """
    files = {}
    for diff in worked:
        for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
            name, *lines = part.splitlines()
            if name == "/dev/null":
                path = ROOT / lines[0].removeprefix("+++ b/")
                assert not path.exists()
                files[path] = [line[1:] for line in lines[1:]]
                continue
            path = ROOT / name.removeprefix("a/")
            files[path] = patched(files.get(path) or path.read_text().splitlines(), lines)
    return files


CHECKED = list(re.finditer(r"^```diff\n.*?^```\n\n((?:    [^\n]*\n)+)", EXTENDING, re.DOTALL | re.MULTILINE))
"""The worked diffs that commands stand under."""
SOAK = bool(os.environ.get("RLHF_JAX_SOAK"))


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(CHECKED) if SOAK else 1),
                         ids=lambda place: re.findall(r"tests/\S+", CHECKED[place][1])[0])
def test_the_commands_under_a_worked_diff_pass_on_a_copy(place, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "runs"))
    for path, lines in files_after(diffs(EXTENDING[:CHECKED[place].end()])).items():
        (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(ROOT)).write_text("\n".join(lines) + "\n")
    for command in re.findall(r"^    python (.*)", CHECKED[place][1], re.MULTILINE):
        quick = ["-x", "-m", "not slow and not longer and not torch"] if command.startswith("-m pytest") else []
        done = subprocess.run([sys.executable, *command.split(), *quick], cwd=copy, check=False, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(copy)})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def patched(text, lines):
    hunks = [[]]
    for line in lines:
        if line.startswith("@@"):
            hunks.append([line])
        else:
            hunks[-1].append(line)
    at = 0
    for hunk in hunks:
        if hunk and hunk[0].startswith("@@ "):
            at = text.index(hunk[0].removeprefix("@@ "), at) + 1
        hunk = [line for line in hunk if not line.startswith("@@")]
        before, after = ([line[1:] for line in hunk if line[:1] != sign] for sign in "+-")
        place = next((i for i in range(at, len(text)) if text[i : i + len(before)] == before), None)
        assert place is not None or not before, "\n".join(["these lines are not there any more:", *before])
        if before:
            text = [*text[:place], *after, *text[place + len(before):]]
            at = place + len(after)
    return text


@pytest.mark.longer
def test_error_texts_are_those_of_the_program():
    page = (ROOT / "docs" / "debugging.md").read_text()
    section = page[page.index("## By error text"):].partition("\n## ")[0]
    texts = []
    for path in (ROOT / "rlhf_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts.append("".join(p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "\0"
                                 for p in parts))
    everything = "\1".join(texts)
    quoted = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(quoted) > 30
    patterns = {text: r"[^\1]*".join(map(re.escape, text.split(" ... "))) for text in quoted if text not in FOREIGN}
    assert [text for text, pattern in patterns.items() if not re.search(pattern, everything)] == []


def test_the_plug_ins_of_the_page_work(tmp_path, monkeypatch):
    (source,) = re.findall(r"^```python\n(\"\"\"mine.*?)^```$", EXTENDING, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine_of_the_page.py").write_text(source)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "accepted": "a", "other": "b"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert PreferenceLoss("mine_of_the_page:dpo_positive", beta=0.2).needs_reference
    PairOptions(rule="mine_of_the_page:best_and_median")
    assert load_function("mine_of_the_page:best_and_median")([3.0, 2.0, 1.0], None) == (0, 1)
    examples, _ = load_examples("rows.jsonl", "preference", converter="mine_of_the_page:forum")
    assert examples[0].responses == ("a", "b")
    assert load_function("mine_of_the_page:short")(["p"], ["abc"], completion_ids=[[1]]) == [-3.0]


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_config_opens_with_its_command_its_time_and_what_to_expect(path):
    head = "".join(re.match(r"(?:#.*\n)+", path.read_text()).group())
    verb = re.search(r"^#   rlhf-jax (\w+)", head, re.MULTILINE).group(1)
    assert verb in VERBS
    assert f"--config {named(path)}" in head
    assert "Time" in head
    assert "Expect" in head
