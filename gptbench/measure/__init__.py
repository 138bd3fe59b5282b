"""Measure: raw samples with units, compile time, bytes per step, and the device's own limit."""
