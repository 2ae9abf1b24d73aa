"""What workers do: validate input, call inference, write result files; and the store they do it in."""
