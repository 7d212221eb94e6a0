"""The command line: one command, one file. `main` has the table of commands, which are imported when called."""
