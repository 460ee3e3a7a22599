"""Clips from videos and photographs. Import what you use from its module; this package imports nothing by itself."""
