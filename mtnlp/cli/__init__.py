"""The command line: one short file per command, which parses, calls `mtnlp.runs` and prints."""
