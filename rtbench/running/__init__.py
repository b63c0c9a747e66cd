"""Many stages: which, in which order, in which process."""
