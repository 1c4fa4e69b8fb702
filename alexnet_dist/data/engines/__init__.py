"""HOW a plan is carried out: one engine a way."""
