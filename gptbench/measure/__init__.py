"""Measure: samples, compile time, bytes, the read roof, the machine."""
