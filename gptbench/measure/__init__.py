"""Measurements: samples, compile time, memory traffic, the read roof, energy, and the state of the machine."""
