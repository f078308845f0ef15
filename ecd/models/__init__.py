"""The model catalogue: what each file is, where it comes from, how a derived one is made."""
