"""The study `oracle`: every video task along the exact field of a few clips."""
