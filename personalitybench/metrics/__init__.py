"""What is measured: objective text measures of answers, and statistics of rows."""
