"""From a suite file to stages and the points that are measured. Nothing here knows of tensors."""
