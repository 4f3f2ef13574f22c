"""Reads rows and shows them: tables, figures, the lecture, the report, trackers. Nothing here runs anything."""
