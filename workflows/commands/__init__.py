"""The commands of `sft`, a module each with `main(argv)` that returns the exit code."""
