"""Foundations of every other package: errors, reading and writing files, printing, hiding secrets, and paths."""
