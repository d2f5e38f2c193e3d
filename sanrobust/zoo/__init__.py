"""Models: what is known of each, how it is built, and where its weights come from."""
