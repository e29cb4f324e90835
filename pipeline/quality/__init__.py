"""Scores before and after, and the gate that decides what is taken."""
