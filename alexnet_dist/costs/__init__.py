"""What an update would cost: counted, measured and predicted."""
