"""What operators decide in advance: the policy document, its default, and how it is read."""
