"""The command line: ``camwatch audit``, ``camwatch layers``, ``camwatch explain``."""
