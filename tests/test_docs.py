"""The documentation does what it says: links, error sentences, commands and their options."""

import re
import shlex

import pytest
import typer

PAGES = ("fmri", "mr", "ct", "which-number", "troubleshooting", "README")


@pytest.fixture(name="pages", scope="module")
def _pages(repository):
    return {name: (repository / "docs" / f"{name}.md").read_text("utf-8") for name in PAGES}


def test_links_lead_somewhere(pages, repository):
    for name, text in pages.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (repository / "docs" / link).exists(), f"{name}: {link}"


def test_every_error_that_is_explained_is_raised_somewhere(pages, repository):
    code = "\n".join(p.read_text("utf-8") for p in (repository / "neurodiff").rglob("*.py"))
    joined = re.sub(r"\"\s*\n\s*f?\"", "", code)  # sentences run over several literals
    for row in re.findall(r"^\| `([^`]+)` \|", pages["troubleshooting"], re.M):
        assert row in joined, row


def commands(text):
    """Tokens of every line of a shell block that calls neurodiff."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" #")[0].split("&&"):
                tokens = shlex.split(part)
                if tokens and tokens[0] == "neurodiff":
                    yield tokens[1:]


def test_every_command_and_option_exists(pages):
    from neurodiff.cli import app

    root, seen = typer.main.get_command(app), 0
    for name, text in pages.items():
        for tokens in commands(text):
            command, words = root, list(tokens)
            while hasattr(command, "commands") and words and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            if "page" in getattr(command, "commands", ()):  # report RUN is report page RUN
                command = command.commands["page"]
            assert not hasattr(command, "commands"), f"{name}: {tokens}"
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            wrong = [w for w in words if w.startswith("-") and w.split("=")[0] not in options]
            assert not wrong, f"{name}: {tokens} has no {wrong[0]}"
            seen += 1
    assert seen > 15
