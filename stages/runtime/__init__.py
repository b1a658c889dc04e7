"""What every process of a run shares: who speaks, what libraries may print, and the metrics of its steps."""
