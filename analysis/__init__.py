"""Questions about heads, one per file, and what they share: cases, runs, uncertainty, the command line."""
