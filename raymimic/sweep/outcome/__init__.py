"""The outcome of a sweep: results, statistics, table, report, pictures."""
