"""Python imports this at its start, since the suite's environment names the folder in PYTHONPATH."""

from new_paths import watch

watch()
