"""Studies: many trainings as data, run here or on a cluster, and their tables beside the paper's."""
