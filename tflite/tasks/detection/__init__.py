"""Detection as a task of conversion."""
