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
HISTORY_PRUNE_EVERY_OFFSETS: Final = 256
"""Old versions and expired request ids are removed at multiples of this offset (so every replica removes alike)."""
REQUEST_ID_RETENTION_S: Final = 24 * 3600.0
"""How long, in fold time, the outcome of a write with a ``request_id`` is kept."""
CLIENTS_KEPT_MAX: Final = 10_000
"""Above this many known clients the oldest are forgotten by a record that moves the expiry floor."""
CLIENT_IDLE_OFFSETS: Final = 1_000_000
"""A client is forgotten only when its last record is at least this many offsets back."""
APPEND_RETRY_S: Final = 20.0
"""How long a write is tried, unless the connection or the call says otherwise: until a leader is there, and under its number
while its outcome is unknown. Sits out an election."""
STEP_OVERTIME_S: Final = 1.0
"""What a call with a time limit may take beyond it, for the step that is under way or is still needed."""
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Above this size of the write-ahead log a writer waits for readers, so that it starts again from its beginning."""
TRIM_RECORDS_PER_COMMIT: Final = 10_000
"""Trimming deletes this many records at a time, so writers do not queue behind it."""
LOG_KEEP_BYTES_LIVE: Final = 10**9
"""How much log an embedded space keeps, in all its shards together, once it has had a live job and nobody has said another
bound."""
LOG_KEEP_BYTES_MIN: Final = 64 * 1024
"""The smallest bound that ``log_keep=`` takes."""
LOG_KEEP_LOOK_BYTES: Final = 32 * 1024 * 1024
"""A process that has appended so much looks whether the log is longer than what is kept; likewise after some records."""
LOG_TRIM_STEP_BYTES: Final = 8 * 1024 * 1024
"""Records of about so many bytes are deleted at a time."""
WRITE_LOCK_TIMEOUT_S: Final = 30.0
"""How long a writer queues for the space's write lock before it raises Timeout (definite)."""
FORK_WAIT_S: Final = 2.0
"""How long a fork waits for the transactions of other threads; where one takes longer, the child cannot open that
space."""
WAKE_POLL_S: Final = 0.5
"""The slow check that backs up wake-ups, in case a writer was killed between its commit and its wake-up."""

PARTIAL_INLINE_BYTES_MAX: Final = 64 * 1024
"""Partials up to this size travel in the record; larger ones go to the blob store."""
LEASE_S: Final = 15.0
"""How long a worker may be silent before an observer expires its claims."""
MERGE_AT_ONCE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Packed partials up to this size are merged all at once; more of them pair by pair, with few in memory."""
JOB_WORKERS_MAX: Final = 1024
BATCH_ROWS_MAX: Final = 1_000_000_000
TARGET_SPLITS_MAX: Final = 1_000_000_000
AGGREGATE_K_MAX: Final = 1_000_000
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
DEAD_LETTERS_PER_TASK_MAX: Final = 100_000
"""A task that skips more records than this fails: that is not a few poison records but a broken job."""
DEAD_LETTERS_KEPT_MAX: Final = 100_000
"""So many skipped records of a task are kept. A rule of the fold: another number takes another fold version."""
DEAD_LETTERS_KEPT_BEFORE_MAX: Final = 1000
"""The same at fold version 1."""
DEAD_LETTERS_CHARS_PER_TASK_MAX: Final = 6_000_000
"""Likewise one whose skipped records and their errors are longer than this, tracebacks aside: they are kept in the log."""
DEAD_LETTER_TRACEBACKS_CHARS_MAX: Final = 1_000_000
"""Skipped records of a task have their tracebacks up to this many characters in all; later ones have the error alone."""

TASKS_AVOIDED_MAX: Final = 1000
"""A node that cannot do more tasks of a run than this (their files are not there) leaves the run to others."""
RUN_STALLED_S: Final = 30.0
"""A run of a cluster that nobody has had a task of for this long is reported as abandoned."""
NODE_RUNS_MAX: Final = 8
"""Runs that a node works on at a time; later ones wait."""
NODE_RUN_LOOK_S: Final = 0.25
"""How often a node looks at most for runs to work on."""
NODE_RETRY_S: Final = 2.0
"""How long a node waits before it continues with a run that its workers had to stop working on."""
PARTITION_FOLDER_BYTES_MAX: Final = 255
"""The longest name of a folder ``column=value`` that ``write_parquet`` makes: what nearly all file systems take."""
SWEPT_KEPT_S: Final = 60.0
"""A blob that was swept is kept aside for this long: one who had found it there before may name it, and die before looking."""
GARBAGE_SWEEP_S: Final = 60.0
"""A node removes blobs that it has seen unnamed for this long, so often."""
KEEPER_RETRY_S_MAX: Final = 600.0
"""What is due for a whole space and fails is tried again ever less often, up to so seldom."""

# Blobs that several machines share
BLOB_CACHE_BYTES_MAX: Final = 8 * 1024 * 1024 * 1024
"""A machine keeps copies of blobs up to this size ..."""
BLOB_CACHE_KEEP_S: Final = 600.0
"""... and removes none that was used within this time, since a task may be reading it."""
BLOB_RETRY_S: Final = 15.0
"""How long storing or fetching a blob is tried again while the blob store does not answer."""
BLOB_ABSENT_S: Final = 2.0
"""How long a blob that is not found is looked for again: a replica of the store may be behind."""
BLOB_CHUNK_BYTES: Final = 512 * 1024
"""A blob is kept in JetStream as messages of this size (or the server's smaller limit)."""
BLOB_CHUNKS_IN_FLIGHT: Final = 16
"""So many of them are on their way at a time."""
BLOB_TRANSFERS_MAX: Final = 8
"""So many blobs are fetched at a time."""

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
ANNOUNCEMENTS_PER_RUN_MAX: Final = 900
"""Announcements of the types that a run's tasks give. They are kept next to what nodes say of the run, up to ``MEMBERS_KEPT``
together.
"""

# -- shared state

EXPIRATIONS_PER_RECORD_MAX: Final = 10_000
"""One record ends at most this many lifetimes (and lets as many delayed messages go), so none is slow to apply."""
TRANSACTION_OPERATIONS_MAX: Final = 100_000
"""Keys that one transaction may read and write."""
TRANSACTION_BYTES_MAX: Final = 32 * 1024 * 1024
"""Bytes of one transaction's reads and writes."""
TRANSACTION_AGE_S: Final = 300.0
"""How long a transaction may stay open."""
TRANSACTION_ATTEMPTS: Final = 20
"""How often ``run_transaction`` tries by default."""
TRANSACTION_BACKOFF_S: Final = 0.002
"""About how long ``run_transaction`` waits after its first try; twice as long after each further one."""
TRANSACTION_BACKOFF_MAX_S: Final = 0.25
"""At most about this long."""
TRANSACTION_TIMEOUT_S: Final = 5.0
"""How long a prepared transaction over several shards is watched before anyone may abort it."""
READ_TIMEOUT_S: Final = 5.0
"""How long a read waits for its consistency level, unless the connection or the call says otherwise."""
GIVE_WAY_S: Final = 0.5
"""How long a transaction over several shards that begins gives way at most to read-only ones that wait for their moment."""
RELEASE_S: Final = 0.25
"""Locks that nobody needs any more are released also when the time is up, if that takes no longer than this."""
SHARDS_MAX: Final = 1024
"""Most shards of a space."""
NAME_BYTES_MAX: Final = 200
"""The longest name of a collection, in bytes of UTF-8."""

# Keys and values of shared state
KEY_BYTES_MAX: Final = 10_000
"""The longest encoded key."""
KEY_DEPTH_MAX: Final = 16
"""How deep tuples may be nested inside a key; the key itself does not count."""
VALUE_BYTES_MAX: Final = 1024 * 1024
"""The longest encoded value."""
VALUE_DEPTH_MAX: Final = 100
"""How deep lists and dicts may be nested inside a value; well below the depth at which reading it could fail."""

# Queues and locks
QUEUE_ERROR_CHARS_MAX: Final = 2000
"""Longer texts of failed attempts are cut."""
QUEUE_ERRORS_KEPT: Final = 10
"""The latest failed attempts of a message whose texts are kept."""
LEASE_LOOK_S: Final = 0.25
"""How often a process that takes from a queue, or waits for a lock, looks for leases that are over."""
LEASES_LOOKED_AT_MAX: Final = 10_000
"""So many leases of a queue are looked at, those of the oldest messages."""
LEASES_ENDED_PER_RECORD_MAX: Final = 1000
"""One record ends at most so many leases, so none is slow to apply."""
LOCK_WAITERS_MAX: Final = 10_000
"""Longest waiting list of a lock."""

# Streams
STREAM_PARTITIONS_MAX: Final = 1024
"""Most partitions of a stream."""
STREAM_FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""Many records appended at once are cut into pieces of at most this size (a larger single record is a piece of its own)."""
STREAM_INLINE_BYTES_MAX: Final = 16 * 1024
"""Pieces up to this size are kept in their segment's row, larger ones next to it."""
STREAM_BLOB_BYTES_MIN: Final = 512 * 1024
"""Pieces over this size are blobs that the record names, but for where blobs are in JetStream: there only what does not fit into
a record is one. Smaller ones are stored faster in the record (ADR 43)."""
STREAM_MERGE_BYTES_MAX: Final = 4096
"""Small appends are merged into one segment up to this size."""
STREAM_MERGE_MS: Final = 1000
"""A segment takes in later appends for this long, in fold time; so retention is as exact as this."""
STREAM_RETIRE_SEGMENTS_MAX: Final = 1000
"""One record removes at most this many segments that are past their retention."""
STREAM_PAGE_BYTES: Final = 8 * 1024 * 1024
"""About how much a reader takes from a partition at a time."""
CONSUMER_SESSION_S: Final = 10.0
"""How long a consumer may be silent before another of its group takes its partitions. It beats at a third of that."""
CONSUMER_WATCH_S: Final = 1.0
"""How often a waiting consumer looks whether the others of its group are alive."""
CONSUMERS_PER_GROUP_MAX: Final = 1024
"""Most consumers in one group."""

# Live jobs
LIVE_PARTS_MAX: Final = 100
"""Most parts of a live job."""
LIVE_POSITIONS_MAX: Final = 4096
"""Most input partitions that a part reads."""
LIVE_WORKERS_MAX: Final = 1024
"""Most workers of a live job at a time."""
LIVE_WORKERS_HERE_MAX: Final = 64
LIVE_INLINE_BYTES_MAX: Final = 64 * 1024
"""A run up to this size is in the record of its commit, a larger one is a blob."""
LIVE_RUNS_PER_COMMIT_MAX: Final = 1000
"""Most runs that one commit adds."""
LIVE_OUTBOX_COMMIT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Most bytes that one commit sends to other shards."""
LIVE_OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
"""While so much waits to be sent to one other shard, the part reads nothing."""
LIVE_FORWARD_BYTES: Final = 8 * 1024 * 1024
"""A forwarder writes about this much in one record."""
LIVE_READ_AHEAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a worker keeps of records that it has decoded and not taken in yet."""
LIVE_SCHEMA_BYTES_MAX: Final = 1024 * 1024
"""The columns of a part's inputs take at most this much."""
LIVE_DROPPED_RUNS_MAX: Final = 1000
"""One record forgets at most this many runs of a job that is dropped."""
LIVE_SIGNATURE_BYTES_MAX: Final = 256 * 1024
"""What the state of a part of a live job depends on, as text."""
LIVE_ERROR_CHARS_MAX: Final = 2000
"""What is kept of the error of a live job that failed."""
LIVE_END_WAIT_S: Final = 5.0
"""How long ``run.stop()`` and closing a connection wait for a worker that is busy, with a function of the user, say."""
LIVE_LEFT_WAIT_S: Final = 1.0
"""How long a node waits for its workers of a job that has stopped."""
LIVE_GIVE_BACK_S: Final = 5.0
"""How long a worker that ends tries to give back what it holds, and to do in other shards what its commits have sent there."""
LIVE_VERSION_WAIT_S: Final = 10.0
"""How long the first live job of a cluster waits for the nodes to raise the fold version."""
WINDOW_SLICES_MAX: Final = 1000
"""Most slices of a sliding window: its length over the greatest common divisor of length and ``every``."""
LIVE_SKEW_S: Final = 60.0
"""A partition is read at most this much of event time ahead of the slowest that has unread records."""
LIVE_BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""A worker reads at most about this much for one commit."""
LIVE_BATCH_ROWS_MAX: Final = 200_000
"""Likewise, in rows."""
STREAM_SOURCE_FILE_BYTES: Final = 16 * 1024 * 1024
"""A task over a range of a stream gets its rows in scratch files of about this size."""
STREAM_SOURCE_BATCH_ROWS: Final = 16_384
"""Rows that are taken from such a file at once for Python functions."""
LIVE_PYTHON_ROWS_MAX: Final = 16_384
"""A worker reads at most so many for one commit where a function of Python is called for each: others wait for that commit,
and for lanes to be given."""
LIVE_GARBAGE_S: Final = 600.0
"""How long a blob that live jobs name no more is kept for readers that still have it on their list."""
LIVE_STATE_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
"""While a worker holds so much open state in memory, it reads nothing, and ``status`` says so."""
LIVE_RUNS_BEHIND_MAX: Final = 512
"""With more runs than this, a bundle's commits wait for the compaction that is under way."""
LIVE_MERGED_KEPT_S: Final = 3600.0
"""A merged run that no commit has named for longer is merged again: far below ``ORPHAN_BLOB_AGE_S``, when it is removed."""
LIVE_BEHIND_S: Final = 2.0
"""A worker joins others when their job has been behind for longer than this to twice of this."""
LIVE_QUIET_S: Final = 60.0
"""A worker leaves a job to the others when all of them together, over so long, ..."""
LIVE_QUIET_SHARE: Final = 0.3
"""... were busy for less than this share of one worker's time."""
LIVE_HOLD_LOOK_S: Final = 5.0
"""How often a worker looks whether retention may remove more of what its job has read."""
LIVE_UNNAMED_LOOK_S: Final = 3600.0
"""How often a process looks for blobs of commits that never happened; they are removed at ``ORPHAN_BLOB_AGE_S``."""
LIVE_UNNAMED_SHARED_LOOK_S: Final = 6 * 3600.0
"""The same where machines share the blobs: all of them are listed for it."""

# Transactions over several shards
PREPARED_TRANSACTIONS_MAX: Final = 1000
"""Transactions that one shard holds prepared at a time; beyond it a shard votes no until some are resolved."""
TOMBSTONE_OFFSETS: Final = 10_000
"""For how many later offsets a shard remembers that a transaction was resolved, so that a late step of it is answered truly."""
BLOCKERS_TOLD_MAX: Final = 16
"""An operation that meets locks gets the names of at most so many transactions that hold them."""
DECISION_SWEEP_OFFSETS: Final = 1000
"""A decision that is still kept after so many later offsets was left by a coordinator that ended; a client then finishes it."""

# Maps
REQUEST_ID_BYTES_MAX: Final = 1000
"""The longest request id, in bytes of UTF-8."""
MAP_ATTEMPTS: Final = 100
"""How often ``pop``, ``setdefault``, ``popitem`` and ``modify`` try before they raise Conflict."""
MAP_RETRY_PAUSE_S: Final = 0.05
"""The longest pause between two of these tries, before jitter."""
MAP_PAGE_ROWS: Final = 512
"""A scan reads at most this many items at a time ..."""
MAP_PAGE_BYTES: Final = 4 * 1024 * 1024
"""... and fewer where that would be more bytes than this."""
PUT_MANY_RECORD_BYTES: Final = RECORD_BYTES_MAX - 1024 * 1024
"""Keys and values of one atomic ``put_many`` in one shard."""
PUT_MANY_PART_BYTES: Final = 4 * 1024 * 1024
"""Keys and values of one part of a ``put_many`` that is not atomic."""
PUT_MANY_PART_KEYS: Final = 10_000
"""Keys of such a part."""
PUT_MANY_PARALLEL: Final = 8
"""So many parts, each of another shard, are on their way at a time."""
SESSION_CACHE_FRESH_S: Final = 0.02
"""How long the cache of session reads is believed before it is compared with the space again."""
SESSION_CACHE_ENTRIES_MAX: Final = 50_000
SESSION_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
SESSION_CACHE_ROW_BYTES_MAX: Final = 64 * 1024
"""Larger items are not kept in the cache of session reads."""
SESSION_CACHE_CHANGES_MAX: Final = 256
"""After more changes of a map than this, all of its cached items are dropped."""
CANCEL_WAIT_S: Final = 5.0
"""How long a cancelled task waits for the end of what it had begun, so that nothing is left behind when it ends."""
MENDED_WITHIN_S: Final = 1.0
"""How long the end of a program or of a space waits for what signal handlers have interrupted to be undone or completed."""
WATCH_PAGE_CHANGES: Final = 256
"""A watch reads at most this many changes at a time."""
WATCH_SHARED_CHANGES: Final = 16
"""Changes of a map are read once for all tasks that watch it, if there are no more of them ..."""
WATCH_SHARED_BYTES: Final = 64 * 1024
"""... and they are no larger together."""
WATCH_LOOK_S: Final = 0.25
"""How often a waiting watch looks whether it was closed."""
TICK_PAUSE_S: Final = 0.01
"""The time between a watch's first tick and its second one, if that ended nothing ..."""
TICK_PAUSE_S_MAX: Final = 1.0
"""... which doubles up to this."""

# Exporting and importing
IMPORT_BATCH_LINES: Final = 1000
"""So many lines of an import go into one record ..."""
IMPORT_BATCH_BYTES: Final = 1024 * 1024
"""... and fewer where that would be more bytes of values than this."""

# The doctor
DOCTOR_REPLAY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Logs up to this size are folded again without ``--deep``."""
DOCTOR_BLOBS_BYTES_MAX: Final = 1024 * 1024 * 1024
"""The content of so many bytes of blobs is compared without ``--deep``."""
ORPHAN_BLOB_AGE_S: Final = 24 * 3600.0
"""A blob that nothing names may be of a job that is being submitted; one older than this is not."""
FOLD_TIME_AHEAD_S: Final = 60.0
"""Fold time further than this ahead of the wall clock is reported."""
DISK_FREE_BYTES_MIN: Final = 64 * 1024 * 1024
"""Less free disk than this is a problem ..."""
DISK_FREE_SHARE_MIN: Final = 0.05
"""... and a smaller share of it than this is reported."""
LOG_BYTES_LARGE: Final = 1024 * 1024 * 1024
"""A log smaller than this is never called large."""

# The cluster: the engine
APPEND_ACK_TIMEOUT_S: Final = 5.0
"""How long one append waits for the engine's acknowledgement before its outcome counts as unknown."""
ENGINE_REQUEST_TIMEOUT_S: Final = 2.0
"""How long one question to the engine (a direct get, a stream's state) waits for its answer."""
TAIL_BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Delivered records that are not applied yet are kept up to this size; what comes beyond is fetched again later."""
TAIL_LOOK_S: Final = 2.0
"""How often a quiet tail asks the engine for the last record, in case a delivery was lost."""
FETCH_BATCH_RECORDS: Final = 1000
"""Most records of one batched direct get."""
REFUSED_KEPT_MAX: Final = 10_000
"""So many records that are none, and on which the servers agreed, are remembered, so as not to ask the servers again."""
FETCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""About how many bytes one batched direct get brings."""
PING_INTERVAL_S: Final = 5.0
"""How often a quiet connection is tried; one that gives no answer until the next time is given up."""
PING_TIMEOUT_S: Final = 2.0
"""How long a server has for the answer to a ping when another answer is overdue."""
SUSPECT_AFTER_S: Final = 1.0
"""An append that is not acknowledged within this time makes its server suspect: it is pinged."""
CONNECT_TIMEOUT_S: Final = 10.0
"""How long opening a link may take, over all servers."""
CONNECT_SERVER_TIMEOUT_S: Final = 2.0
"""How long one server has to accept a connection."""
RECONNECT_WAIT_S: Final = 0.1
"""The pause after all servers were tried without success, which doubles ..."""
RECONNECT_WAIT_S_MAX: Final = 2.0
"""... up to this. It is tried for ever."""
HOME_LOOK_S: Final = 5.0
"""How often a program that is connected to a server of another region looks for one of its own."""
LEADER_LOOK_S: Final = 10.0
"""How often a node looks whether a consistent log is led from a place that is none of the space's regions."""
LEADER_MOVE_S: Final = 60.0
"""How long after such a log was asked to be led from a region it may be asked again."""
LINK_PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""What may wait to be sent to a server that takes it slowly; beyond it sending fails."""
ENGINE_DISK_SHARE_WARN: Final = 0.7
"""The doctor warns when a server has used this share of the disk that the engine may use ..."""
ENGINE_DISK_SHARE_MAX: Final = 0.9
"""... and calls this share a problem: a full disk stops the engine there."""

# The cluster: replicas and nodes
APPLY_BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""A replica applies records up to about this size in one transaction, if so many are there."""
REPLICA_STALL_S: Final = 3.0
"""A process that applied nothing for this long while it held the lock counts as stopped: the others continue with another
copy."""
REPLICA_GATHER_S: Final = 0.02
"""What is delivered to a replica for which nobody waits is applied together with what else comes within this time."""
REPLICA_LOOK_S: Final = 1.0
"""How often an idle replica looks whether the copy that it uses was replaced by another process."""
REPLICA_OPEN_WAIT_S: Final = 5.0
"""How long an opener waits until the log is delivered up to where the local copy stands."""
REPLICA_BEHIND_OFFSETS_MAX: Final = 1000
"""A replica that is further behind than this catches up before it appends."""
REPLICA_RETIRE_S: Final = 5.0
"""A copy that was replaced stays open for so long, for reads that are under way."""
REPLICA_RECENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""The latest records are remembered up to this size, so that one's own is verified without asking the log."""
SNAPSHOT_EVERY_OFFSETS: Final = 65_536
"""Replicas come to rest at multiples of this offset: nodes compare their state there and take snapshots."""
ASK_HEDGE_S: Final = 0.3
"""A read that got no answer from a node within this time is sent to another as well."""
ASK_HEDGES_MAX: Final = 5
"""So many more nodes are asked, one after another, while a question has no answer."""
ASK_AGAIN_S: Final = 1.0
"""How long after that a question that nobody has answered is asked again; each time twice as long."""
ASK_POLL_S: Final = 5.0
"""How long a node is asked at most to wait for news; then another is asked, so news is that late when the node has died."""
ASK_WAIT_S_MAX: Final = 30.0
"""How long a node keeps a question at most that it cannot answer yet."""
ASK_REQUEST_BYTES_MAX: Final = 1_000_000
"""The longest question."""
ASK_REPLY_BYTES_MAX: Final = 1_000_000
"""Answers are given in pages of about this size (or the server's smaller limit of a message)."""
ASK_KEYS_MAX: Final = 10_000
"""Keys of one question ..."""
ASK_KEYS_BYTES: Final = 500_000
"""... and fewer where they would be longer than this."""
ASK_ROWS_MAX: Final = 10_000
"""Rows of one answer."""
ASK_EARLY_S: Final = 1.0
"""A writer without a replica asks for the outcome of a record while it appends it; a node keeps that question for so long."""
AWAITED_CLIENTS_MAX: Final = 256
"""Of so many clients a node keeps the outcomes of their last record in memory, for questions that come late."""
AWAITED_BYTES_MAX: Final = 4096
"""The largest outcomes of a record that it keeps; anyone who comes late for larger ones has to ask again."""
ASK_THREADS: Final = 8
"""So many questions a node answers at a time."""
ASKS_QUEUED_MAX: Final = 1_000
"""So many more wait for their turn; a node that has more says that it is busy."""
ASKS_PARKED_MAX: Final = 10_000
"""So many questions a node keeps, for each shard, that wait for a later offset or for a barrier."""
NODE_BEAT_S: Final = 2.0
"""How often a node says in the log that it lives."""
NODE_LEASE_S: Final = 10.0
"""A node that others have not heard of for this long, each on its own clock, is expired."""
REPLICA_COPIES: Final = 2
"""How many nodes of a region host a shard, as far as the region has nodes."""
NODES_MAX: Final = 1000
"""Most nodes of a space; of those that are gone the latest are listed as far as there is room."""
NODE_LOOK_S: Final = 0.2
"""The least time between two looks of a node at who is there, however much is written."""
NODE_STUCK_S: Final = 120.0
"""A node whose deciding thread was not heard of for this long says that it is not live."""
READY_LAG_OFFSETS_MAX: Final = 10_000
"""A node that is further behind than this in a shard says that it is not ready."""
DRAIN_TIMEOUT_S: Final = 30.0
"""How long a leaving node answers on while others take over its shards."""
OPENINGS_AT_ONCE: Final = 2
"""So many replicas a node brings up to date at a time."""
DIGESTS_KEPT: Final = 8
"""Nodes compare the log's digests at this many of its latest multiples of DIGEST_EVERY_OFFSETS."""
HASHES_TO_AGREE: Final = 2
"""So many nodes must have the same state before a snapshot of it counts."""
HASHES_KEPT: Final = 4
"""Nodes compare the state at this many of the latest multiples of SNAPSHOT_EVERY_OFFSETS."""
SNAPSHOTS_KEPT: Final = 2
"""So many snapshots of a shard are kept, the latest; the log is kept from the oldest of them on."""
SNAPSHOT_OFFER_S: Final = 60.0
"""How long a program waits for a node to bring the snapshot from the blob store that it asks for."""
SNAPSHOT_TAKEOVER_S: Final = 60.0
"""When the first node of a shard has stored no snapshot for so long, the next one does."""
ARCHIVES_KEPT: Final = 1000
"""So many archived ranges of a shard's log are kept, each of SNAPSHOT_EVERY_OFFSETS records; older ones are deleted."""
ARCHIVES_AT_ONCE: Final = 4
"""So many ranges of a shard's log are archived before other shards have their turn."""
UPKEEP_LOOK_S: Final = 5.0
"""How often a node looks for snapshots to store, logs to trim, and nodes that differ."""
SWEPT_BLOBS_MAX: Final = 1000
"""So many snapshots that nothing names any more are deleted at a time."""
HALT_REASON_CHARS_MAX: Final = 500
"""Longer reasons of why a replica halted are cut."""
