"""The rollouts study: long videos window by window, in constant memory."""
