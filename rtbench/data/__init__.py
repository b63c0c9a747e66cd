"""Images and labels: splits, batches, augmentation, which samples are drawn."""
