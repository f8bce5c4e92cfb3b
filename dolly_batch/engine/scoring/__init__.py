"""Log-likelihoods of continuations after a prompt."""
