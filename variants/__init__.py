"""From a name to one adapter on disk: stages with weights, merges, imports, on the base they were trained on."""
