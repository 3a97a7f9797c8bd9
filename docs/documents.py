"""What the documents take from the code: the table of jobs, and the pages that the site has beside docs/*.md.

    python docs/documents.py    writes the table of jobs into docs/pipeline.md (`make tables`)

mkdocs.yml names this file as a hook: README.md becomes the site's first page, and the settings become a page.
"""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs and `python docs/documents.py` do not look there

from hive_ray.config import Config, Section  # noqa: E402
from hive_ray.presets import shapes  # noqa: E402
from jobs.command import JOBS, module_of  # noqa: E402

PIPELINE = ROOT / "docs" / "pipeline.md"
BEGIN, END = "<!-- jobs: written by `make tables` -->", "<!-- end of jobs -->"
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")
"""Files of the root that README.md links to."""


def jobs_table() -> str:
    """A row for each job, in the order of the pipeline: what it does, reads and writes, and its settings."""
    lines = ["| job | what it does | reads | writes | settings |", "|---|---|---|---|---|"]
    for name, job in JOBS.items():
        reads, writes = reads_and_writes(name)
        sections = "all" if set(job.sections) == set(Config.model_fields) else _listed(job.sections)
        lines.append(f"| `{name}` | {job.summary} | {_listed(reads)} | {_listed(writes)} | {sections} |")
    return "\n".join(lines)


def reads_and_writes(job: str) -> tuple[list[str], list[str]]:
    """Names of the tables and models that a job reads and writes by its declared stages, with the preset `shapes`."""
    from jobs.run import Run, inputs_of  # here: it imports torch and Ray

    module = importlib.import_module(module_of(job))
    run = Run("runs/one", shapes().changed({"averaging": {"editors": ("dpo", "rejection")}}))
    stages = module.stages(run) if hasattr(module, "stages") else []
    writes = [_general(stage.name) for stage in stages]
    return inputs_of(module, run), list(dict.fromkeys(writes))


def _general(name: str) -> str:
    """The name of a table or model without that of one editor or share: "evaluation/<editor>"."""
    name = re.sub(r"^(evaluation|curves)/.+", r"\1/<editor>", name)
    return re.sub(r"^reward_curve/[\d.]+", "reward_curve/<share>", name)


def with_table(page: str) -> str:
    """The page with the present table of jobs between its two marks. ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/pipeline.md needs the lines {BEGIN!r} and {END!r}: the table stands between them")
    return f"{before}{BEGIN}\n\n{jobs_table()}\n\n{END}{after}"


def settings_page() -> str:
    """Every setting with its default and its sentence, section by section. Defaults are those without a preset."""
    lines = ["# Settings", "", "Every setting is a flag: `pairs.resolution` is `--pairs.resolution`."]
    for name, section in sections_of(Config):
        lines += ["", f"## {name}", "", section.__doc__ or "", "", "| setting | default | |", "|---|---|---|"]
        for field, info in section.model_fields.items():
            if _section_of(info.annotation) is None:
                default = "" if info.is_required() else f"`{info.get_default()!r}`"
                lines.append(f"| `{field}` | {_cell(default)} | {_cell(info.description or '')} |")
    return "\n".join(lines) + "\n"


def sections_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Dotted names of the sections inside a section, at any depth, and their classes."""
    for name, info in section.model_fields.items():
        inner = _section_of(info.annotation)
        if inner:
            yield f"{prefix}{name}", inner
            yield from sections_of(inner, f"{prefix}{name}.")


def pages_beside() -> dict[str, str]:
    """Pages that the site has and docs/ does not, by name: README.md is index.md, and links lead to where pages are."""
    texts = {name: (ROOT / name).read_text() for name in BESIDE}
    texts["index.md"] = (ROOT / "README.md").read_text()
    texts["settings.md"] = settings_page()
    return {name: re.sub(r"\]\(docs/", "](", text) for name, text in texts.items()}


def on_files(files: Any, config: Any) -> Any:
    """A hook of mkdocs."""
    from mkdocs.structure.files import File

    for name, text in pages_beside().items():
        files.append(File.generated(config, name, content=text))
    return files


def _section_of(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the table of jobs."""
    PIPELINE.write_text(with_table(PIPELINE.read_text()))


if __name__ == "__main__":
    main()
