"""What everything stands on: errors, durable files, text, the machine."""
