"""Classification as a task of conversion."""
