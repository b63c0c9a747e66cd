"""From results to a board: rows, ranks, verdicts, figures."""
