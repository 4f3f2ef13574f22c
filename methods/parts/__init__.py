"""Building blocks that two or more methods share, one a file, so that a change touches those who use it."""
