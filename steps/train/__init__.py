"""The train step: tokens in, tuned model out."""
