"""Who is at the other end, whether they may still come in, how fast, and the record of those who were turned away."""
