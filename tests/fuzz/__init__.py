"""Whatever reads bytes from outside, fed with bytes that nobody would send in good faith."""
