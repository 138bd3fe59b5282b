"""The largest and smallest numbers that a configuration may hold."""

MIN_NEW_TOKENS = 2
"""One of the prefill, and a decode step's."""
MAX_LAYERS = 1000
"""The deepest published models have under 200, and this many are built within a second."""
MAX_WIDTH = 2**20
"""Of any width and any number of heads: the widest published feed-forward network has 2**16. With it, the elements of
any matrix are counted without overflow."""
MAX_EXPERTS = 2**12
"""Published models have up to 2**11."""
MAX_VOCABULARY = 2**24
"""Sixty times that of any published model."""
MAX_CONTEXT = 2**28
"""Tokens: longer than any published model was made for."""
MAX_TOKENS = 2**22
"""Of a prompt, or generated: a prompt of so many is drawn within a second, and is recorded."""
MAX_SAMPLES = 10_000
MAX_BATCH = 2**16
MAX_RECORD_BYTES = 128 * 2**20
"""Of a record's steps and tokens: half of what is read again (see `gptbench.base.inputs`)."""
STEP_BYTES, TOKEN_BYTES = 30, 12
"""What a step's time and a token take in a record, at most."""
MAX_SECONDS = 30 * 24 * 3600
"""Of a time limit: a month."""
MAX_JOBS = 10_000
"""Of a sweep. All are composed and checked before the first one runs, at some ten a second."""

MAX_THREADS_PER_CORE = 4
"""Far more only wait for each other, and very many crash the process."""

MAX_FUSED_SEQUENCES = 8
"""Sums of more would not fit into a program's registers; and with more, matrix units are the better choice."""

MAX_STOP_TOKENS = 16
"""So many places there are for them on the device, whether they are taken or not."""
