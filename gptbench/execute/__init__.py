"""From a configuration to a record: single runs, jobs of sweeps, and interleaved measurements of two configurations."""
