"""Who may connect, and how the link is protected: tokens, TLS, limits."""
