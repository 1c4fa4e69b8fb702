"""metrics.jsonl and its mirrors: one file a tracker."""
