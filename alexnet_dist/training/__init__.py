"""One update, the loop around it, and everything a run writes."""
