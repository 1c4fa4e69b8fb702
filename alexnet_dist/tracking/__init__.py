"""metrics.jsonl and its mirrors: one file a tracker.

To add one, write its file with a `Kind` at the end, as csv.py does, and give it a line in `KINDS` of mirrors.py. A
tracker with a method `show` gets pictures, one with `keep` models; see trackers.py. One that a user asks for reads its
own setting: a field of `TrackingConfig`, which it finds in `Run.tracking`.
"""
