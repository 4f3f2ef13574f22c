"""From a suite's TOML to its cells: where suites lie, how they are read, what their axes multiply out to."""
