"""Facts: what models and synthetic texts say of a world whose truth is known."""
