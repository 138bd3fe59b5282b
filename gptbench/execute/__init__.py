"""From a configuration to a record: one run, one job of a sweep, two configurations interleaved."""
