"""The limits of numbers in a configuration."""

MIN_NEW_TOKENS = 2
"""Smallest number of tokens to generate: one from prefill, and one from a decode step."""
MAX_LAYERS = 1000
"""Largest number of layers. The deepest published models have fewer than 200; this many are built within a second."""
MAX_WIDTH = 2**20
"""Largest width, and largest number of heads. The widest published feed-forward network has 2**16; up to this limit the
number of elements of a matrix does not overflow."""
MAX_EXPERTS = 2**12
"""Largest number of experts. Published models have up to 2**11."""
MAX_VOCABULARY = 2**24
"""Largest vocabulary, in tokens: sixty times that of any published model."""
MAX_CONTEXT = 2**28
"""Longest context, in tokens: longer than that of any published model."""
MAX_TOKENS = 2**22
"""Largest number of tokens of a prompt or a generation: a random prompt of this length takes less than a second to
make, and can be recorded."""
MAX_SAMPLES = 10_000
"""Largest number of timed repetitions."""
MAX_BATCH = 2**16
"""Largest number of sequences decoded at once."""
MAX_RECORD_BYTES = 128 * 2**20
"""Largest size of a record's steps and tokens, in bytes: half of what can be read again (see
`gptbench.base.inputs`)."""
STEP_BYTES, TOKEN_BYTES = 30, 12
"""Largest size of one step's time and of one token in a record, in bytes."""
MAX_SECONDS = 30 * 24 * 3600
"""Longest time limit, in seconds: 30 days."""
MAX_JOBS = 10_000
"""Largest number of jobs of a sweep. All of them are composed and checked, about ten per second, before the first one
runs."""

MAX_THREADS_PER_CORE = 4
"""Largest number of CPU threads per core: more only wait for each other, and far more crash the process."""

MAX_FUSED_SEQUENCES = 8
"""Largest batch of engine=fused: the accumulators of more sequences do not fit into a program's registers, and for
more, matrix units (tensor cores) are the better choice."""

MAX_STOP_TOKENS = 16
"""Largest number of stop tokens: the size of their tensor on the device, whether all of it is used or not."""
