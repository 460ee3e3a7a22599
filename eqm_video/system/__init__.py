"""The machine and its files: written whole or not at all, claimed before use, waits with limits."""
