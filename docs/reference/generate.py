"""Write command_line.md, configuration.md, section_formats.md and image_formats.md beside this file from the code and the
tables of the tests.

python docs/reference/generate.py [FOLDER]      # `make docs` does it
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from hyperst.config import RunConfig, preset
from hyperst.data.readers.formats import formats_page

COMMANDS = (sys.executable, "-m", "typer", "hyperst.cli.commands", "utils", "docs", "--name", "hyperst")
COMMANDS += ("--title", "Command line")


def command_line() -> str:
    """Every command with its arguments and options."""
    text = subprocess.run(COMMANDS, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\[/?bold\]", "**", text).replace("&#x27;", "'").rstrip() + "\n"


def meanings(part: type) -> dict[str, str]:
    """What the attributes of a part of the configuration mean, from its docstring."""
    attributes = (inspect.getdoc(part) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.M)
    return {name: re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(text.split()).replace("``", "`")) for name, text in found}


def configuration() -> str:
    """Every key with its default and its meaning, and the published configuration as YAML."""
    text = [
        "# Configuration",
        "",
        "What `--config FILE.yaml` may hold and a run's `config.yaml` does hold. Keys that a file leaves out keep the value of",
        "the preset; an unknown key or a value of another kind is an error that names it.",
    ]
    default = RunConfig()
    for part in fields(RunConfig):
        values = getattr(default, part.name)
        said = meanings(type(values))
        shown = TypeAdapter(type(values)).dump_python(values, mode="json")
        text += ["", f"## {part.name}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        text += [f"| `{key}` | `{json.dumps(value)}` | {said[key]} |" for key, value in shown.items()]
    paper = yaml.safe_dump(TypeAdapter(RunConfig).dump_python(preset("paper"), mode="json"), sort_keys=False)
    text += ["", "## The paper's", "", "`--preset paper` is:", "", "```yaml", paper.rstrip(), "```"]
    return "\n".join(text) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def image_formats() -> str:
    """What is read of image files and how, and what is refused with which remedy."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.hyperst.data import image_formats as formats
    from tests.hyperst.data import image_scales as places

    compressions = [
        (name, *("read" if formats.exists(name, layout) else "-" for layout in formats.LAYOUTS))
        for name in formats.COMPRESSIONS
    ]
    kinds = [
        (kind.what, kind.as_ if kind.read is not None else f"refused: {kind.as_}", kind.remedy and f"`{kind.remedy}`")
        for kind in formats.KINDS
    ]
    scales = [
        (scale.what, "not recorded" if scale.mpp is None else f"{scale.mpp:g}", scale.problem)
        for scale in places.SCALES
    ]
    endings = [(", ".join(f"`{each}`" for each in part.endings), part.reader, part.how) for part in formats.ENDINGS]
    text = ["# Image formats", "", *formats.INTRODUCTION, "", "## Files", ""]
    text += [*table(("ending", "read by", "how"), endings), "", "## Compressions and layouts of TIFF", ""]
    text += [*table(("compression", *formats.LAYOUTS), compressions), "", "## Pixels", ""]
    text += [*table(("file", "what becomes of it", "the message names"), kinds), "", "## um per pixel", ""]
    text += [*places.ABOUT_SCALE, "", *table(("where the file says it", "um/px", "what is told"), scales), ""]
    text += ["## Orientation", "", *places.ABOUT_ORIENTATION, ""]
    return "\n".join([*text, "## Damage and memory", "", *places.ABOUT_DAMAGE]) + "\n"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "command_line.md").write_text(command_line(), encoding="utf-8")
    (folder / "configuration.md").write_text(configuration(), encoding="utf-8")
    (folder / "section_formats.md").write_text(formats_page(), encoding="utf-8")
    (folder / "image_formats.md").write_text(image_formats(), encoding="utf-8")


if __name__ == "__main__":
    main()
