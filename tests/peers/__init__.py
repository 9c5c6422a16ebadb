"""Scripts run by hand, each beside a clone of another project: proofs that need its own code."""
