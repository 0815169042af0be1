"""A teacher and students of a fifth of its size trained on real text: what each way of distilling gains."""
