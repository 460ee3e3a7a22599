"""Evaluation: samples against real clips under a stated protocol, with error bars and floors."""
