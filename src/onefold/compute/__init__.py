"""Jobs: frozen plans, tasks handed out by a fold of the log, and results that can be read while they run."""
