"""One stage: from a resolved part and its inputs to a result."""
