"""Hostile text on every road that text of users takes: `python -m tests.fuzz --cases 100000`; up to two hundred of each kind run with the tests."""
