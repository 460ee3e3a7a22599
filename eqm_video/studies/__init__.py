"""Studies: each is a class in a file, or in `study.py` of a folder, of its own, and a command of its name."""
