"""The commands of `sft`, a module each: `main(argv)` runs it and returns its exit code."""
