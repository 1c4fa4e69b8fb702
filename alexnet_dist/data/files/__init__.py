"""What is known of image files: headers, verdicts, kept arrays."""
