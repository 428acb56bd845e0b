"""Write command_line.md, configuration.md and section_formats.md beside this file from the code that they describe.

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


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "command_line.md").write_text(command_line(), encoding="utf-8")
    (folder / "configuration.md").write_text(configuration(), encoding="utf-8")
    (folder / "section_formats.md").write_text(formats_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
