"""What the walker shares with nobody: a part in a file of its own."""

STEP = 0.25
