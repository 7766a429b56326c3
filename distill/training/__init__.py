"""One stage of training: what it minimises, how it steps, what it saves."""
