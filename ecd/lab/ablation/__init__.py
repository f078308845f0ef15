"""`ecd ablate`: what each part contributes, measured on real daemons."""
