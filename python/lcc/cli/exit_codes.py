"""Exit codes that scripts can use. 2 is also the shell's for wrong usage, 141 that for a reader who has gone."""

UNUSABLE, UNWRITABLE, INTERRUPTED, NOT_READ = 2, 4, 130, 141
