"""Units of a third party, small enough that a training takes milliseconds."""
