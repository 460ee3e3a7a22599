"""Faults on purpose: kills, full disks, stopped processes and damaged files, in a quick part and in a long one.

The quick part are the tests here; the long one is `make faults`, whose table says what was tried and what came of it.
"""
