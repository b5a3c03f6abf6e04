"""Write the generated pages of the docs, and check every link of every page.

    python docs/build.py            write docs/cli.md and docs/report-schema.json
    python docs/build.py --check    only say whether they are up to date; exit code 1 where something is wrong
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from deepsanitizer.cli import cli
from deepsanitizer.report import json_schema

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def cli_page() -> str:
    """The command line's reference, from its own --help."""
    parts = ["<!-- Written by `make docs` from --help: edit the code instead. -->\n# The command line\n"]
    with click.Context(cli, info_name="deepsanitizer", max_content_width=100, terminal_width=100,
                       help_option_names=["-h", "--help"]) as context:
        parts.append(_block(cli.get_help(context)))
        for name in cli.list_commands(context):
            command = cli.commands[name]
            with click.Context(command, parent=context, info_name=name) as inner:
                parts.append(f"## {name}\n\n" + _block(command.get_help(inner)))
    return "\n".join(parts)


def _block(text: str) -> str:
    return "```text\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n```\n"


def generated() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    return {ROOT / "docs" / "cli.md": cli_page(),
            ROOT / "docs" / "report-schema.json": json.dumps(json_schema(), indent=2) + "\n"}


def broken_links() -> Iterator[str]:
    """Each link to a file or heading of this repository that is not there."""
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        for link in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists():
                yield f"{page.relative_to(ROOT)}: there is no {name}"
            elif anchor and anchor not in _anchors(target):
                yield f"{page.relative_to(ROOT)}: {target.name} has no heading #{anchor}"


def _anchors(page: Path) -> set[str]:
    headings = HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def stale() -> Iterator[str]:
    """Each generated file that does not hold what it should."""
    for path, text in generated().items():
        if not path.is_file() or path.read_text("utf-8") != text:
            yield f"{path.relative_to(ROOT)} is out of date: run make docs"


def main() -> int:
    """Write, unless --check; then check. The exit code: 1 where something is wrong."""
    if "--check" not in sys.argv[1:]:
        for path, text in generated().items():
            path.write_text(text, "utf-8")
    problems = [*stale(), *broken_links()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
