"""README is true: its first block is what CI runs, its suite parses, its files exist."""

import re
import tomllib
from pathlib import Path

import pytest

from bench.planning import files, plan, suite
from bench.reporting import tables

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_two_commands_do_all_the_set_up():
    block = re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1)
    assert block.splitlines() == ["pip install -e . && bench run quick", 'pip install -e ".[dev]" && pytest']


def test_the_example_suite_is_planned():
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL).group(1)
    loaded = suite.parse(tomllib.loads(block), Path("readme.toml"))
    planned = plan.cells(loaded)
    # rotation at two weight decays and three methods as they are; two protocols, three budgets, five seeds
    assert len(planned) == (2 + 3) * 2 * 3 * 5


def test_every_built_in_suite_is_planned():
    for name in files.builtin():
        assert plan.cells(suite.load(name))


def rows(markdown):
    """The lines of a Markdown text that are a table's."""
    return [line for line in markdown.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lecture_embedded", ["probe"]),
        ("semi_supervised_embedded", ["error"]),
        ("mixed_batches", ["batch_norm"]),
    ],
)
def test_its_tables_are_those_of_the_committed_rows(name, shown):
    loaded = suite.load(name)
    made = tables.of_suite(loaded, tables.read(ROOT / "results" / f"{name}.csv"))
    text = {table.name: tables.markdown(table) for table in made}
    for table in shown:
        assert "\n".join(rows(text[table])) in README
    committed = (ROOT / "results" / f"{name}.md").read_text("utf-8")
    assert all(one in committed for one in text.values())


def test_the_numbers_of_its_ablations_are_those_of_the_tables_that_it_links():
    block = rows(README.split("| what | best layer |")[1].split("\n\n")[0])[1:]
    best = []
    for line in block:
        what, shown = line.strip("| ").split(" | ")
        if link := re.search(r"\]\((results/.*?\.md)\)", what):
            probe = rows((ROOT / link[1]).read_text("utf-8").split("## knn")[0])
            at = probe[0].split(" | ").index("best layer (chosen on validation)")
            best = [re.search(r"[\d.]+", line.split(" | ")[at])[0] for line in probe[2:]]
        assert set(re.findall(r"[\d.]+", shown)) <= set(best), line
    assert len(block) == 10


def test_the_files_that_it_shows_are_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
