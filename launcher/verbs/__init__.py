"""One file a verb. Each gives HELP, add_arguments(parser) and run(args) -> exit code, and imports little at the top."""
