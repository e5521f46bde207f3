"""Every limit and default of Onefold, by name. Units are in the names."""

from __future__ import annotations

from typing import Final

RECORD_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest record that the embedded log takes."""
OPERATIONS_PER_RECORD_MAX: Final = 10_000
"""The largest batch that group commit makes."""
HISTORY_WINDOW_OFFSETS: Final = 10_000
"""How many offsets of old versions a store keeps for snapshot reads and watches."""
DIGEST_EVERY_OFFSETS: Final = 4096
"""Log digests are kept at multiples of this offset."""
CLIENT_BATCHES_KEPT: Final = 1
"""Outcomes are kept for a client's last batch only: it has one append in flight."""
HISTORY_PRUNE_EVERY_OFFSETS: Final = 256
"""Old versions and expired request ids are removed at multiples of this offset (so every replica removes alike)."""
REQUEST_ID_RETENTION_S: Final = 24 * 3600.0
"""How long, in fold time, the outcome of a write with a ``request_id`` is kept."""
CLIENTS_KEPT_MAX: Final = 10_000
"""Above this many known clients the oldest are forgotten by a record that moves the expiry floor."""
CLIENT_IDLE_OFFSETS: Final = 1_000_000
"""A client is forgotten only when its last record is at least this many offsets back."""
APPEND_RETRY_S: Final = 15.0
"""How long an append of unknown outcome is tried again under its number before AppendUnknown reaches the caller."""
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Above this size of the write-ahead log a writer waits for readers, so that it starts again from its beginning."""
TRIM_RECORDS_PER_COMMIT: Final = 10_000
"""Trimming deletes this many records at a time, so writers do not queue behind it."""
WRITE_LOCK_TIMEOUT_S: Final = 30.0
"""How long a writer queues for the space's write lock before it raises Timeout (definite)."""
WAKE_POLL_S: Final = 0.5
"""The slow check that backs up wake-ups, in case a writer was killed between its commit and its wake-up."""

PARTIAL_INLINE_BYTES_MAX: Final = 64 * 1024
"""Partials up to this size travel in the record; larger ones go to the blob store."""
LEASE_S: Final = 15.0
"""How long a worker may be silent before an observer expires its claims."""
MERGE_AT_ONCE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Packed partials up to this size are merged all at once; more of them pair by pair, with few in memory."""
MAX_ATTEMPTS: Final = 4
"""How often a task is tried before it is isolated down to the record that breaks it."""
PROCESS_DEATHS_MAX: Final = 2
"""How often a task's process may die before the task is isolated."""
TASKS_PER_JOB_MAX: Final = 200_000
SPLITS_DEFAULT_MIN: Final = 48
"""Fewest splits that a job is cut into when its input allows: intervals need clusters."""
SPLITS_EXPRESSIONS_MIN: Final = 20
"""The same where Polars does all the work: such tasks are short, and each costs a partial of all its groups."""
SPLIT_BYTES_TARGET: Final = 64 * 1024 * 1024
"""Input bytes of a split once the input is large enough for SPLITS_DEFAULT_MIN of them."""
SPLIT_BYTES_MIN: Final = 64 * 1024
"""A file is not cut into ranges smaller than this."""
BACKUP_FACTOR: Final = 2.0
"""A task that runs longer than this many medians gets a backup."""
BROADCAST_BYTES_MAX: Final = 32 * 1024 * 1024
"""The small side of a join is broadcast up to this many input bytes; above, both sides are shuffled."""
SHUFFLE_PARTITIONS_DEFAULT: Final = 16
DEAD_LETTERS_PER_TASK_MAX: Final = 1000
"""A task that skips more records than this fails: that is not a few poison records but a broken job."""

JOB_STAGES_MAX: Final = 64
CLAIMS_PER_OPERATION_MAX: Final = 1000
"""One claim operation hands out at most this many tasks, whatever it asks for."""
LIVE_RUNS_PER_TABLE_MAX: Final = 8
"""Runs of a table whose results are kept until a later run is done; beyond it the oldest one is given up."""
RUNS_PER_TABLE_KEPT: Final = 100
"""Finished runs of a table that are listed (without tasks and results)."""
ERRORS_PER_RUN_KEPT: Final = 100
"""The latest failed attempts of a run that are kept."""
FAILURE_TEXT_CHARS_MAX: Final = 20_000
"""Longer messages, tracebacks and records of failures are cut."""
MEMBERS_KEPT: Final = 1000
"""Processes whose renewals are counted; beyond it the longest silent ones are forgotten."""
