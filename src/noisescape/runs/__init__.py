"""A run on disk and on the machine: its directory, atomic files, progress, and tasks side by side."""
