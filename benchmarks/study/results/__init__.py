"""What is published of the study: scores, records, targets."""
