"""README is true: its first block is what CI runs, its suite parses, its files exist."""

import re
import tomllib
from pathlib import Path

from bench import plan, suite

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_two_commands_do_all_the_set_up():
    block = re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1)
    assert block.splitlines() == ["pip install -e . && bench run quick", 'pip install -e ".[dev]" && pytest']


def test_the_example_suite_is_planned():
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL).group(1)
    loaded = suite.parse(tomllib.loads(block), Path("readme.toml"))
    planned = plan.cells(loaded)
    # rotation at two weight decays and two methods as they are; two protocols, three budgets, five seeds
    assert len(planned) == (2 + 2) * 2 * 3 * 5


def test_every_built_in_suite_is_planned():
    for name in suite.builtin():
        assert plan.cells(suite.load(name))
