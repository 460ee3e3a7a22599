"""Clips from videos and photographs. Import from the modules: this package itself imports nothing."""
