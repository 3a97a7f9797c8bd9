"""What the documents say is there: jobs, settings, flags, links, environment variables."""

import ast
import re
import shlex
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from docs import documents
from hive_ray.config import Annotation, Config
from jobs.command import JOBS, read_arguments, read_command

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_WORDS, MEDIAN_WORDS = 180, 1500, 14
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
CODE = ("hive_ray", "jobs", "serve", "studies", "bench")
COMMIT = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b")
INTERVAL = re.compile(r"\[-?\d+(\.\d+)?, -?\d")
LINK = re.compile(r"(?<!\\)\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"#+ (.+)")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n?)+", re.MULTILINE)
OUR_COMMAND = re.compile(
    r"(?:\S*python -m (?:(?P<package>jobs|studies|serve|bench)\.)(?P<module>\w+)|hive-ray (?P<job>[a-z-]+))\b"
)
VARIABLE = re.compile(
    r"(AWS|CURL|DIFFUSERS|DS|EVENT|GLOO|HF|HIVE_RAY|HUGGINGFACE|LD|LOCAL|MALLOC|MASTER|MLFLOW|NCCL|OMP|OPENAI|RAY|"
    r"REPORTER|REQUESTS|SSL|TQDM|TRANSFORMERS|TORCH|WANDB)_[A-Za-z][A-Za-z0-9_]*"
)
"""Names of environment variables, of the services and libraries that we work with."""
NO_VARIABLES = {"RAY_AUTH_"}
"""Beginnings of names."""


# --- README ---------------------------------------------------------------------------------------------------------


def test_the_readme_is_read_in_ten_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS
    lengths = [len(sentence.split()) for sentence in sentences(text)]
    assert len(lengths) > 40
    assert statistics.median(lengths) <= MEDIAN_WORDS


def test_the_readme_has_no_commits_and_no_intervals():
    text = (ROOT / "README.md").read_text()
    assert not COMMIT.findall(text)
    assert not INTERVAL.search(text)


def test_a_commit_and_an_interval_would_be_seen():
    assert COMMIT.findall("at 06b497d it took") == ["06b497d"]
    assert not COMMIT.findall("the defaced facade of 1234567")
    assert INTERVAL.search("+5.2 [3.2, 7.5]")


def sentences(text: str) -> list[str]:
    """Sentences of the prose: no code, table, heading or picture."""
    paragraphs = re.split(r"\n\s*\n", FENCE.sub("", text))
    prose = [part for part in paragraphs if part.strip() and part.lstrip()[0] not in "#|!"]
    plain = [re.sub(r"\]\([^)]*\)|[\[*`]|^(?:-|\d+\.) ", "", part, flags=re.MULTILINE) for part in prose]
    return [sentence for part in plain for sentence in re.split(r"(?<=[.!?])\s+", part) if sentence.strip()]


# --- What pages name ------------------------------------------------------------------------------------------------


def test_the_table_of_jobs_is_the_present_one():
    page = documents.PIPELINE.read_text()
    assert page == documents.with_table(page), "run `make tables`"
    assert all(f"`{name}`" in page for name in JOBS)


def test_every_section_of_settings_is_named_in_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    names: dict[type, list[str]] = {}
    for name, section in documents.sections_of(Config):
        names.setdefault(section, []).append(name)
    unnamed = [found for found in names.values() if not any(is_named(name, text) for name in found)]
    assert not unnamed


def test_the_page_of_settings_has_every_setting_of_a_section():
    text = documents.settings_page()
    assert "## editor.sft.recovery\n" in text
    assert "| `keep_last` | `2` | Newest checkpoints to keep during training." in text
    assert all(f"\n## {name}\n" in text for name, _ in documents.sections_of(Config))


def is_named(name: str, text: str) -> bool:
    """Whether a page names a section: as a setting (`editor.dpo`) or in a flag (--editor.dpo.beta)."""
    flag = f"--{name.replace('_', '-')}."
    return flag in text or re.search(rf"`{re.escape(name)}[.`]", text) is not None


def test_every_environment_variable_that_the_code_reads_is_in_the_table():
    table = [line for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if line.startswith("|")]
    known = set(re.findall(r"`([A-Za-z_][A-Za-z0-9_]*)`", "\n".join(table)))
    read = {name: path for path in code() for name in variables_in(path.read_text())}
    of_tests = {name: path for path in (ROOT / "tests").rglob("*.py") for name in variables_in(path.read_text())}
    read |= {name: path for name, path in of_tests.items() if name.startswith("HIVE_RAY_")}
    read |= {f"HIVE_RAY_{name.upper()}": ROOT / "serve" for name in settings_of("ServeSettings", "StartSettings")}
    assert len(read) > 40
    assert not {name: str(path) for name, path in read.items() if name not in known}


def test_a_variable_would_be_seen():
    source = 'import os\nNAME = "STRANGE"\nos.environ.get(NAME)\nos.environ["OTHER"]\nQUIET = {"RAY_new": "1"}'
    assert variables_in(source) == {"STRANGE", "OTHER", "RAY_new"}


def code() -> Iterator[Path]:
    for folder in CODE:
        yield from (ROOT / folder).rglob("*.py")


def variables_in(source: str) -> set[str]:
    """Environment variables of a module: what it looks up in os.environ, and names of known families."""
    tree = ast.parse(source)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {text for text in texts if VARIABLE.fullmatch(text)} - NO_VARIABLES
    constants = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        key = looked_up(node)
        name = constants.get(key.id) if isinstance(key, ast.Name) else getattr(key, "value", None)
        if isinstance(name, str):
            found.add(name)
    return found


def looked_up(node: ast.AST) -> ast.AST | None:
    """The key of os.environ[key], os.environ.get(key), os.environ.setdefault(key, ...) and os.getenv(key)."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        return node.slice
    calls = ("os.environ.get", "os.environ.setdefault", "os.environ.pop", "os.getenv")
    if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
        return node.args[0]
    return None


def test_nothing_cites_notes_that_a_reader_cannot_open():
    notes = re.compile(r"\b(?:method|design|findings|faults|house)\.md\b")
    files = [*code(), *(ROOT / "tests").rglob("*.py"), *DOCUMENTS, ROOT / "cluster.yaml", ROOT / "Makefile"]
    own = Path(__file__).resolve()
    assert not [str(path) for path in files if path.resolve() != own and notes.search(path.read_text())]


# --- Links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document):
    dead = []
    for target in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(target)
    assert not dead


def test_links_lead_somewhere_on_the_site():
    """Where README.md, CONTRIBUTING.md and the others lie beside the pages of docs/."""
    beside = documents.pages_beside()
    targets = {target.partition("#")[0] for text in beside.values() for target in LINK.findall(FENCE.sub("", text))}
    files = {target for target in targets if target and ":" not in target}
    assert "operations.md" in files
    assert all(file in beside or (ROOT / "docs" / file).exists() for file in files)


@cache
def anchors(page: Path) -> set[str]:
    """What links to headings of a page may end in, as GitHub and the site have it."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- Commands -------------------------------------------------------------------------------------------------------


def test_commands_parse():
    """Ours, in code blocks: flags and values are those that the job takes."""
    lines = {(document.name, line) for document in DOCUMENTS for line in commands(document.read_text())}
    assert len(lines) > 30
    wrong = [f"{name}: {line}: {problem}" for name, line in sorted(lines) if (problem := problem_of(line))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python -m jobs.make_pairs sd15 --pairs.resolutoin 64", "resolutoin"),
        ("hive-ray make-pear", "no such"),
        ("python -m serve.start --hots 0.0.0.0", "--hots"),
        ("python -m bench.pairs samplre", "samplre"),
        ("make quickstrat", "no such"),
    ],
)
def test_a_wrong_command_would_be_seen(line, problem):
    assert problem in problem_of(line)


def commands(text: str) -> Iterator[str]:
    """The lines of code blocks that call make, a module of ours, or hive-ray; broken lines are joined."""
    indented = INDENTED.findall(FENCE.sub("", text))
    for block in [*FENCE.findall(text), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s+)#.*", "", line).strip()
            if OUR_COMMAND.search(line) or re.match(r"(\w+=\S+ )*make ", line):
                yield line


def problem_of(line: str) -> str:
    """What is wrong with a command; "" if nothing is."""
    match = OUR_COMMAND.search(line)
    if not match:
        target = re.match(r"(?:\w+=\S+ )*make (\w+)", line)[1]
        return "" if f"\n{target}:" in (ROOT / "Makefile").read_text() else "no such target"
    package = match["package"] or "jobs"
    module = match["module"] or match["job"].replace("-", "_")
    rest = line[match.end() :]
    quoted = rest.count("'") % 2  # the command of `ray exec` stands in quotes
    words = shlex.split(rest.rpartition("'")[0] if quoted else rest)
    if package in ("jobs", "studies"):
        return problem_of_job(module, words)
    path = ROOT / package / f"{module}.py"
    if not path.exists():
        return "no such module"
    if package == "bench":
        known = path.read_text()
        return next((f"{word} is unknown" for word in words if not word.isdigit() and word not in known), "")
    names = settings_of("ServeSettings", "StartSettings", "AnnotateSettings") | set(Annotation.model_fields)
    known = {f"--{name.replace('_', '-')}" for name in names}
    return next((f"{word} is unknown" for word in words if word.startswith("--") and word not in known), "")


def problem_of_job(name: str, words: list[str]) -> str:
    if name not in JOBS:
        return "no such job"
    if words and words[-1] in ("--help", "--help-all"):
        return ""
    for flag in ("--config", "--run"):  # there are no such files here; a preset has the same settings
        if flag in words:
            place = words.index(flag)
            words = words[:place] + words[place + 2 :]
    return problem_of_words(name if JOBS[name].settings else "", tuple(words))


@cache
def problem_of_words(job: str, words: tuple[str, ...]) -> str:
    """Of a job with settings of its own, or "" for all that have a run's: those take the same words."""
    try:
        if job:
            read_arguments(JOBS[job], list(words), job)
        elif words:
            read_command(list(words))
    except (ValueError, OSError) as error:
        return str(error)
    except SystemExit as ended:
        return f"refused with status {ended.code}: {' '.join(words)}"
    return ""


@cache
def settings_of(*classes: str) -> set[str]:
    """Names of the settings of these classes of serve/, by their source: their imports take seconds."""
    found = set()
    for path in (ROOT / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name in classes:
                found |= {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
    return found
