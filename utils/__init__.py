"""Ground that every room stands on, and that knows none of them: ranks, files, errors, number formats, weights."""
