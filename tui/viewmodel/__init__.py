"""What is shown, without a terminal: pure functions from watched objects and the time to rows and lines of text."""
